"""The console script: its commands, what it imports, and the configurations that it finds."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from lesioncast import cli
from lesioncast.jobs.command.arguments import COMMANDS, config_path, shipped_configs
from storage.version import installed_version

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {
    "torch", "ray", "sklearn", "matplotlib", "zarr", "numpy", "scipy", "skimage", "nibabel",
    "nilearn", "storage", "pydantic",
}  # fmt: skip
NAMES = [command.name for command in COMMANDS]
# Packages that take a second or more to import, and the jobs that cannot do without them.
SLOW = {"torch", "ray", "sklearn", "matplotlib", "pandas", "scipy.stats"}
NEEDED = {
    "simulate": {"scipy.stats"},
    "convert": set(),
    "qc": set(),
    "export": set(),
    "pretrain": SLOW - {"sklearn", "matplotlib"},
    "finetune": SLOW - {"sklearn", "matplotlib"},
    "forecast": {"torch"},
    "evaluate": SLOW,
    "calibrate": {"torch"},
    "combine": {"torch"},
    "publish": SLOW,
    "demo": SLOW,
}
COMMAND_LINE = "from lesioncast.cli import main; main(sys.argv[1:])"
SCRIPT = "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"


def heavy_imports(code: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run `code` with the command line `argv`; the last line of errors is what it imported."""
    program = (
        f"import sys; sys.argv = {[*argv]!r}\n"
        f"try: {code}\n"
        f"finally: print('HEAVY', {HEAVY!r} & set(sys.modules), file=sys.stderr)"
    )
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("command", [None, *NAMES, "serve"])
def test_help_imports_nothing_heavy(command: str | None) -> None:
    arguments = [command, "--help"] if command else ["--help"]
    done = heavy_imports(COMMAND_LINE, "lesioncast", *arguments)
    assert done.returncode == 0, done.stderr
    assert " ".join(["usage: lesioncast", *arguments[:-1]]) in done.stdout
    assert done.stderr.splitlines()[-1] == "HEAVY set()"


@pytest.mark.parametrize("name", NAMES)
def test_help_of_a_script_imports_nothing_heavy_and_is_that_of_the_command(name: str) -> None:
    done = heavy_imports(SCRIPT, f"jobs/{name}.py", "--help")
    assert done.returncode == 0, done.stderr
    assert f"usage: lesioncast {name} " in done.stdout
    assert done.stderr.splitlines()[-1] == "HEAVY set()"


def slow_imports(code: str) -> set[str]:
    """Return the packages of SLOW that a new process has imported after `code`."""
    program = f"import sys\n{code}\nprint(*({SLOW!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("name", NAMES)
def test_a_job_with_its_configuration_has_imported_only_what_it_needs(name: str) -> None:
    code = (
        f"import lesioncast.jobs.{name}, lesioncast.jobs.command.arguments as arguments\n"
        "from lesioncast.config import load_config\n"
        "load_config(arguments.config_path('demo'))"
    )
    assert slow_imports(code) <= NEEDED[name]


@pytest.mark.parametrize(
    ("module", "needed"),
    [
        ("lesioncast.config", set()),
        ("lesioncast.bundle.config", set()),
        ("lesioncast.api", {"torch"}),
        # Every process of the service imports it, and most need no network. Ray Serve has pandas.
        ("serve.app", {"ray", "pandas"}),
    ],
)
def test_settings_and_the_service_need_no_network_and_forecasts_in_memory_no_figure(
    module: str, needed: set[str]
) -> None:
    assert slow_imports(f"import {module}") <= needed


@pytest.mark.parametrize("name", NAMES)
def test_a_script_passes_its_command_line_to_its_job(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr(f"lesioncast.jobs.{name}.main", lambda argv: given.append(argv) or 3)
    arguments = {
        "calibrate": ["bundle", "store.zarr", "--output", "new"],
        "combine": ["one", "two", "--store", "store.zarr", "--output", "new"],
        "publish": [
            *("bundle", "--evaluation", "evaluation", "--log", "training.log"),
            *("--release", "1.0.0", "--change", "First version.", "--output", "new"),
        ],
    }.get(name, ["--config", "demo", "--set", "seed=1"])
    monkeypatch.setattr("sys.argv", [f"jobs/{name}.py", *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "jobs" / f"{name}.py"), run_name="__main__")
    assert (end.value.code, given) == (3, [arguments])


def test_version_is_that_of_the_installed_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"lesioncast {installed_version()}\n"


def test_help_lists_every_job_and_the_service() -> None:
    text = cli.build_parser().format_help()
    listed = [line.split()[0] for line in text.splitlines() if line.startswith("    ")]
    assert {*NAMES, "serve"} <= {*listed}


def test_every_job_module_has_a_command_and_a_script() -> None:
    modules = {path.stem for path in (ROOT / "platform/lesioncast/jobs").glob("*.py")}
    assert modules - {"__init__"} == set(NAMES)
    assert {path.stem for path in (ROOT / "jobs").glob("*.py")} == set(NAMES)


def test_a_subcommand_runs_its_job(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["simulate", "--config", "demo", "--set", "simulation.subject=4"]) == 2
    assert "lesioncast simulate: error: " in (error := capsys.readouterr().err)
    assert "unknown key simulation.subject; nearest: subjects" in error


def test_a_shipped_configuration_is_found_by_name() -> None:
    assert set(shipped_configs()) == {"counterfactual", "demo", "paper", "small"}
    assert config_path("demo") == ROOT / "jobs/configs/demo.yaml"
    assert config_path("some/demo") == Path("some/demo")
    assert config_path("demo.yaml") == Path("demo.yaml")


def test_an_unknown_configuration_names_the_shipped_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as usage:
        cli.main(["convert", "--config", "tiny"])
    assert usage.value.code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "expected a file or one of counterfactual, demo, paper, small, got tiny" in error


def test_serve_replaces_the_process_with_serve_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[list[str]] = []

    def execv(path: Path, arguments: list[str]) -> None:
        started.append([str(path), *arguments[1:]])
        raise SystemExit(0)

    monkeypatch.setattr("os.execv", execv)
    executable = str(Path(sys.executable).with_name("serve"))
    own = tmp_path / "own.yaml"
    own.write_text(
        "http_options: {host: 0.0.0.0, port: 8123}\n"
        "applications: [{import_path: serve.app:build, route_prefix: /lesions}]\n"
    )
    for given, file, address in (
        ([], ROOT / "serve/service.yaml", "http://127.0.0.1:8000/"),
        ([str(own)], own, "http://localhost:8123/lesions"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["serve", *given])
        assert started.pop() == [executable, "run", str(file)]
        assert f"will be at {address} within" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["- a list", "a: [", "http_options: {port: 1}", "\x00"])
def test_serve_refuses_a_file_without_applications(tmp_path: Path, text: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(SystemExit, match=r"own\.yaml: expected settings of Ray Serve"):
        cli.main(["serve", str(tmp_path / "own.yaml")])


def test_serve_says_which_extra_or_file_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"got .*absent\.yaml; name one"):
        cli.main(["serve", str(tmp_path / "absent.yaml")])
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install 'lesioncast\[serve\]'"):
        cli.main(["serve"])

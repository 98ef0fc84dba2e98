"""The tree itself: what may lie where, and who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = {
    "storage": set(),
    "platform/lesioncast": {"storage"},
    "serve": {"storage", "lesioncast"},
    "jobs": {"storage", "lesioncast", "serve"},
}
OURS = {"storage", "lesioncast", "serve"}
FORBIDDEN_IN_DIFFUSION = {"ray", "zarr", "nibabel", "numpy", "storage"}
TOP_LEVEL = {
    "LICENSE", "Makefile", "README.md", "jobs", "k8s", "platform", "pyproject.toml", "serve",
    "storage", "tests",
}  # fmt: skip


def tracked() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [Path(line) for line in listing.stdout.splitlines() if (ROOT / line).exists()]


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, at whatever depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def modules(folder: str) -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py" and path.is_relative_to(folder)]


def test_platform_is_a_source_root_and_never_a_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert not (ROOT / "platform.py").exists()


def test_platform_and_torch_import_from_the_root() -> None:
    code = "import platform, torch; print(platform.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert not Path(found.stdout.strip()).is_relative_to(ROOT / "platform")


def test_no_file_in_the_root_or_in_jobs_hides_a_standard_module() -> None:
    visible = [path.stem for path in tracked() if path.parent in (Path(), Path("jobs"))]
    assert not set(visible) & (set(sys.stdlib_module_names) - {"platform"})


def test_the_top_level_holds_only_the_rooms() -> None:
    found = {path.parts[0] for path in tracked() if not path.parts[0].startswith(".")}
    assert found == TOP_LEVEL


@pytest.mark.parametrize("room", LAYERS)
def test_imports_flow_one_way(room: str) -> None:
    own = {Path(room).name}
    for path in modules(room):
        ours = {name.split(".")[0] for name in imports(path)} & OURS
        assert ours <= LAYERS[room] | own, f"{path} imports {ours - LAYERS[room] - own}"


def test_diffusion_runs_with_torch_alone() -> None:
    for path in modules("platform/lesioncast/diffusion"):
        found = imports(path)
        assert not {name.split(".")[0] for name in found} & FORBIDDEN_IN_DIFFUSION, path
        ours = {name for name in found if name.startswith("lesioncast")}
        assert all(name.startswith("lesioncast.diffusion") for name in ours), path

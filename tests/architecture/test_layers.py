"""Architecture tests: where files may lie, and which package may import which."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import ray

from lesioncast.cluster.ray_internals import RAY_VERSION
from tests.architecture.tree import ROOT, tracked
from tests.conftest import LONGEST

OURS = ("storage", "lesioncast", "serve", "jobs")
MAX_MODULES = 13

# Layers from the bottom up. A module belongs to the longest prefix that matches its name. It may
# import its own entry and every entry of a lower row; entries of one row do not import each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("storage.errors",),
    (
        "storage.layout",
        "storage.atomic",
        "storage.digest",
        "storage.radiological",
        "storage.text_files",
        "storage.version",
    ),
    ("storage.trial.path_patterns",),
    ("storage.settings",),
    ("storage.trial", "storage.backends"),
    ("storage.nifti",),
    ("storage.preprocess",),
    ("storage.store",),
    ("storage",),
    ("storage.convert", "storage.qc", "storage.export"),
    (
        "lesioncast",
        "lesioncast.arms",
        "lesioncast.arrays",
        "lesioncast.errors",
        "lesioncast.markdown",
        "lesioncast.seeds",
    ),
    ("lesioncast.parsing", "lesioncast.yaml_text"),
    ("lesioncast.imaging", "lesioncast.cluster", "lesioncast.calibration"),
    ("lesioncast.priors",),
    ("lesioncast.diffusion", "lesioncast.simulation"),
    ("lesioncast.bundle",),
    ("lesioncast.training",),
    ("lesioncast.forecasting",),
    (
        "lesioncast.evaluation.settings",
        "lesioncast.evaluation.metrics",
        "lesioncast.evaluation.provenance",
    ),
    ("lesioncast.evaluation.paper_results",),
    ("lesioncast.evaluation.features",),
    ("lesioncast.evaluation.baselines", "lesioncast.evaluation.where"),
    ("lesioncast.evaluation.causal",),
    ("lesioncast.evaluation.analysis",),
    ("lesioncast.evaluation.evaluate",),
    ("lesioncast.evaluation.reporting",),
    ("lesioncast.evaluation",),
    ("lesioncast.config",),
    ("lesioncast.jobs", "lesioncast.api", "serve"),
    ("lesioncast.cli",),
    ("jobs",),
)
# Only these may import evaluation: forecasts in production do not depend on research code.
EVALUATION_IMPORTERS = ("lesioncast.evaluation", "lesioncast.config", "lesioncast.jobs")
# `lesioncast.imaging.covariates` loads no package but numpy, so that the networks run with torch.
ALLOWED_IN_DIFFUSION = (
    "lesioncast.diffusion",
    "lesioncast.imaging.covariates",
    "lesioncast.priors.flair_reader",
    "lesioncast.priors.input_patterns",
    "lesioncast.errors",
    "lesioncast.seeds",
)
ALLOWED_IN_PRIORS = (
    "lesioncast.priors",
    "lesioncast.imaging",
    "lesioncast.arms",
    "lesioncast.arrays",
    "lesioncast.errors",
)
FORBIDDEN_IN_DIFFUSION = {"ray", "zarr", "nibabel", "numpy", "storage"}
TOP_LEVEL = {
    "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md",
    "SECURITY.md", "jobs", "k8s", "platform", "pyproject.toml", "serve", "storage", "tests",
}  # fmt: skip


def module_name(path: Path) -> str:
    """Return the dotted name under which a source file is imported."""
    parts = path.with_suffix("").parts
    parts = parts[1:] if parts[0] == "platform" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def source_files() -> dict[str, Path]:
    """Return the project's own modules by name, without tests and Kubernetes scripts."""
    paths = (path for path in tracked() if path.suffix == ".py")
    named = {module_name(path): path for path in paths}
    return {name: path for name, path in named.items() if name.split(".")[0] in OURS}


def imported_names(source: str, known: Iterable[str] = ()) -> set[str]:
    """Return every module that the source imports, at any depth and under TYPE_CHECKING.

    `from package import module` counts as an import of `package.module` if that is a known module.
    """
    modules = set(known)
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            children = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = children & modules
            names |= submodules
            if not submodules or submodules != children:
                names.add(node.module)
    return names


@cache
def own_imports() -> dict[str, frozenset[str]]:
    """Return, for each of our modules, which of our modules it imports."""
    sources = source_files()
    graph = {}
    for name, path in sources.items():
        targets = imported_names((ROOT / path).read_text(), sources)
        ours = {target for target in targets if target.split(".")[0] in OURS}
        graph[name] = frozenset(ours - {name})
    return graph


def layer_of(module: str) -> tuple[int, str]:
    """Return the row and the entry of LAYERS that a module belongs to."""
    matching = [
        (len(entry), row, entry)
        for row, entries in enumerate(LAYERS)
        for entry in entries
        if module == entry or module.startswith(f"{entry}.")
    ]
    _, row, entry = max(matching)
    return row, entry


def entry_is_evaluation(module: str) -> bool:
    """Return True for the evaluation package and its modules."""
    return f"{module}.".startswith("lesioncast.evaluation.")


def forbidden_imports(graph: Mapping[str, frozenset[str]]) -> Iterator[str]:
    """Yield a sentence for each import that does not point down."""
    for module, targets in graph.items():
        row, entry = layer_of(module)
        for target in sorted(targets):
            target_row, target_entry = layer_of(target)
            if target_row > row or (target_row == row and target_entry != entry):
                yield f"{module} imports {target}, which is not below it"
            elif entry_is_evaluation(target) and not module.startswith(EVALUATION_IMPORTERS):
                yield f"{module} imports {target}, but only evaluation, config and jobs may"


def test_platform_is_a_source_root_and_never_a_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert not (ROOT / "platform.py").exists()


def test_platform_and_torch_import_from_the_root() -> None:
    code = "import platform, torch; print(platform.__file__)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert not Path(result.stdout.strip()).is_relative_to(ROOT / "platform")


def test_no_file_in_the_root_or_in_jobs_hides_a_standard_module() -> None:
    visible = [path.stem for path in tracked() if path.parent in (Path(), Path("jobs"))]
    assert not set(visible) & (set(sys.stdlib_module_names) - {"platform"})


def test_the_top_level_holds_only_the_agreed_entries() -> None:
    entries = {path.parts[0] for path in tracked() if not path.parts[0].startswith(".")}
    assert entries <= TOP_LEVEL


def test_imports_point_down() -> None:
    assert list(forbidden_imports(own_imports())) == []


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("lesioncast.forecasting.pipeline", "lesioncast.evaluation.metrics.scores"),
        ("lesioncast.training.loop", "lesioncast.config"),
        ("serve.app", "lesioncast.evaluation.run"),
        ("storage.layout", "lesioncast.arms"),
        ("storage.qc.measure", "storage.export.export"),
    ],
)
def test_a_forbidden_import_is_reported(module: str, target: str) -> None:
    graph = own_imports()
    graph = {**graph, module: graph[module] | {target}}
    assert [line for line in forbidden_imports(graph) if target in line]


def test_no_import_cycle() -> None:
    try:
        list(TopologicalSorter(own_imports()).static_order())
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_diffusion_runs_with_torch_alone() -> None:
    for name, path in source_files().items():
        if not name.startswith("lesioncast.diffusion"):
            continue
        targets = imported_names((ROOT / path).read_text())
        assert not {target.split(".")[0] for target in targets} & FORBIDDEN_IN_DIFFUSION, path
        ours = {target for target in targets if target.startswith("lesioncast")}
        assert all(target.startswith(ALLOWED_IN_DIFFUSION) for target in ours), path


def test_settings_of_the_networks_need_no_torch() -> None:
    for name, path in source_files().items():
        if name.startswith("lesioncast.diffusion.settings"):
            targets = imported_names((ROOT / path).read_text())
            inside = ("lesioncast.diffusion.settings", "lesioncast.imaging.covariates")
            assert "torch" not in targets, path
            assert all(t.startswith(inside) for t in targets if t.startswith("lesioncast")), path


def test_priors_know_neither_the_networks_nor_storage() -> None:
    for name, path in source_files().items():
        if not name.startswith("lesioncast.priors"):
            continue
        targets = imported_names((ROOT / path).read_text())
        assert not {target.split(".")[0] for target in targets} & {"ray", "zarr", "storage"}, path
        ours = {target for target in targets if target.startswith("lesioncast")}
        assert all(target.startswith(ALLOWED_IN_PRIORS) for target in ours), path


def test_what_the_networks_import_of_the_priors_needs_torch_alone() -> None:
    inside = ("lesioncast.priors.flair_reader", "lesioncast.priors.input_patterns")
    for name, path in source_files().items():
        if name.startswith(inside):
            targets = imported_names((ROOT / path).read_text())
            assert not {target.split(".")[0] for target in targets} & FORBIDDEN_IN_DIFFUSION, path
            assert all(t.startswith(inside) for t in targets if t.startswith("lesioncast")), path


def test_ray_internals_are_imported_in_one_module() -> None:
    importers = {
        name
        for name, path in source_files().items()
        if any("ray" in t and "._internal" in t for t in imported_names((ROOT / path).read_text()))
    }
    assert importers == {"lesioncast.cluster.ray_internals"}


def test_ray_internals_fit_the_installed_ray() -> None:
    assert ray.__version__ == RAY_VERSION, "look at lesioncast/cluster/ray_internals.py again"


def test_folders_are_small() -> None:
    counts: dict[Path, int] = {}
    for path in tracked():
        if path.suffix == ".py" and path.name != "__init__.py":
            counts[path.parent] = counts.get(path.parent, 0) + 1
    assert {str(folder): n for folder, n in counts.items() if n > MAX_MODULES} == {}


def test_the_longest_test_files_exist() -> None:
    assert [name for name in LONGEST if not (ROOT / "tests" / name).is_file()] == []

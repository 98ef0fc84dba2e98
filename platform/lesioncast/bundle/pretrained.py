"""Find the bundle that comes with lesioncast.

The name `pretrained` stands for it wherever a bundle to read is named. A folder of that name is
written `./pretrained`, or in Python as a `Path`. Nothing writes to the bundle: where lesioncast is
installed, its files may be read-only and other processes may be reading them.

Command lines are parsed with this module, so it imports nothing that takes time.
"""

from pathlib import Path

from lesioncast.errors import BundleError

PRETRAINED = "pretrained"
# Part of the wheel, of the container image and of the source tree.
FOLDER = Path(__file__).resolve().parents[1] / PRETRAINED


def pretrained_bundle() -> Path:
    """Return the folder of the bundle that comes with lesioncast.

    Raise BundleError if this copy of lesioncast has none.
    """
    if not FOLDER.is_dir():
        raise BundleError(
            f"{FOLDER}: expected the bundle that comes with lesioncast, got no folder; this copy "
            "of lesioncast was made without it: install a release that has it, or train a bundle "
            f"with `make demo` and name its folder. A folder called {PRETRAINED} is "
            f"./{PRETRAINED}"
        )
    return FOLDER


def is_pretrained(path: Path) -> bool:
    """Return whether `path` is the bundle that comes with lesioncast, which nothing writes to."""
    return path.resolve() == FOLDER.resolve()

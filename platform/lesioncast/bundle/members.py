"""Name the weight files of a bundle with several members.

Members are networks and priors of different training seeds, whose forecasts are mixed. The weights
of the first lie in the folder of the bundle, as those of a bundle with one member do. The weights
of member k lie in its subfolder `member-k`, under the same names.
"""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

UNET_FILE, CONTROL_FILE = "unet.safetensors", "controlnet.safetensors"
SPATIAL_FILE = "spatial_prior.safetensors"  # of a model with a base map alone
_PREFIX = "member-"


def member_folders(members: int) -> tuple[str, ...]:
    """Return the folder of each member's weights, relative to that of the bundle."""
    return ("", *(f"{_PREFIX}{number}" for number in range(2, members + 1)))


def further_weight_files(members: int, *, base_map: bool) -> tuple[str, ...]:
    """Return the names of the weight files of all members but the first."""
    names = (UNET_FILE, CONTROL_FILE, *([SPATIAL_FILE] if base_map else []))
    return tuple(f"{folder}/{name}" for folder in member_folders(members)[1:] for name in names)


def is_of_further_member(name: str) -> bool:
    """Return whether a file that a manifest lists is of a member beside the first."""
    return name.startswith(_PREFIX)


def count_members(names: Iterable[str]) -> int:
    """Return the number of members of a bundle whose manifest lists these files."""
    return 1 + len({name.split("/")[0] for name in names if is_of_further_member(name)})


def copy_members(folder: Path, sources: Iterable[Path]) -> int:
    """Copy the weights in each folder of `sources` to be those of a member; return their number."""
    copied = 0
    for number, source in enumerate(sources, 1):
        target = folder / member_folders(number)[-1]
        target.mkdir(exist_ok=True)
        for path in _weights_in(source):
            shutil.copyfile(path, target / path.name)
        copied = number
    return copied


def _weights_in(folder: Path) -> Iterator[Path]:
    paths = (folder / name for name in (UNET_FILE, CONTROL_FILE, SPATIAL_FILE))
    return (path for path in paths if path.is_file())

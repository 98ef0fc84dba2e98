"""Describe a bundle from its small files, without weights and without torch."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from lesioncast.bundle.calibration import CALIBRATION_FILE, BundleCalibration, read_calibration
from lesioncast.bundle.config import SCHEMA, BundleConfig
from lesioncast.bundle.json_files import read_json
from lesioncast.bundle.members import (
    CONTROL_FILE,
    SPATIAL_FILE,
    UNET_FILE,
    count_members,
    further_weight_files,
    is_of_further_member,
)
from lesioncast.errors import BundleError, ConfigError
from lesioncast.parsing import parse_dataclass
from storage.atomic import current_directory
from storage.digest import sha256_file

MANIFEST = "manifest.json"
CONFIG_FILE, METRICS_FILE, CARD_FILE = "config.json", "metrics.json", "README.md"
FILES = (UNET_FILE, CONTROL_FILE, CONFIG_FILE, METRICS_FILE, CARD_FILE)
DESCRIPTION_FILES = (CONFIG_FILE, METRICS_FILE, CARD_FILE, CALIBRATION_FILE)
OPTIONAL_FILES = (SPATIAL_FILE, CALIBRATION_FILE)
CASE_DIGITS = 16  # digits of the digest of a training case in metrics.json, which need no more
RETRAIN = "run jobs/pretrain.py and jobs/finetune.py to make it again"
MAX_ATTEMPTS = 3  # to read a bundle that is replaced meanwhile

Content = TypeVar("Content")


@dataclass(frozen=True)
class BundleDescription:
    """What a bundle is, without its weights."""

    path: Path
    config: BundleConfig
    #: SHA-256 of the manifest.
    digest: str
    #: What cases with known outcomes taught about its forecasts; None if it has no calibration.
    calibration: BundleCalibration | None = field(default=None, kw_only=True)
    #: Number of its members: networks of different training seeds, whose forecasts are mixed.
    member_count: int = field(default=1, kw_only=True)


def files_of(config: BundleConfig, *, calibrated: bool, members: int) -> tuple[str, ...]:
    """Return the names of the files of a bundle with this configuration, without the manifest."""
    base_map = config.model.unet.base_map
    present = {SPATIAL_FILE: base_map, CALIBRATION_FILE: calibrated}
    optional = (name for name in OPTIONAL_FILES if present[name])
    return (*FILES, *optional, *further_weight_files(members, base_map=base_map))


def bundle_digest(path: Path) -> str:
    """Return the digest that names the bundle at `path`."""
    return sha256_file(current_directory(path) / MANIFEST)


def describe_bundle(path: Path) -> BundleDescription:
    """Return the description of the bundle at `path`; no weight is read.

    Raise BundleError as `load_bundle` does, but for altered weights.
    """
    return read_unchanged(path, partial(read_description, path, verified=DESCRIPTION_FILES))


def read_unchanged(path: Path, read: Callable[[Path], Content]) -> Content:
    """Return what `read` makes of the bundle's folder, all of it of one version of the bundle.

    `read` is called again if the bundle was replaced meanwhile.
    """
    for _ in range(MAX_ATTEMPTS):
        folder = current_directory(path)
        before = _digest_or_none(folder)
        try:
            content = read(folder)
        except (BundleError, OSError):
            if _digest_or_none(current_directory(path)) == before:
                raise
        else:
            if _digest_or_none(current_directory(path)) == before:
                return content
    raise BundleError(
        f"{path}: expected one bundle, got another one at each of {MAX_ATTEMPTS} attempts to read "
        "it; run again when no job replaces it"
    )


def _digest_or_none(folder: Path) -> str | None:
    try:
        return sha256_file(folder / MANIFEST)
    except OSError:
        return None


def read_description(path: Path, folder: Path, *, verified: Iterable[str]) -> BundleDescription:
    """Return the description of the bundle in `folder`, after verifying the files `verified`.

    A name stands for the files of that name of all members.
    """
    if not (folder / MANIFEST).is_file():
        raise BundleError(
            f"{path}: expected a bundle with {MANIFEST}, got none; run jobs/finetune.py first"
        )
    manifest = read_json(folder / MANIFEST)
    # An older schema has other configuration keys and weight names, which nothing converts.
    listed = {name for name in manifest.get("sha256", ()) if not is_of_further_member(name)}
    if manifest.get("schema") != SCHEMA or listed - set(OPTIONAL_FILES) != set(FILES):
        raise BundleError(
            f"{path / MANIFEST}: expected schema {SCHEMA} and the files {', '.join(FILES)}, "
            f"got schema {manifest.get('schema')} and {', '.join(manifest.get('sha256', ()))}; "
            f"{RETRAIN}"
        )
    digests, chosen = manifest["sha256"], set(verified)
    corrupt = first_corrupt_file(
        folder, {name: digests[name] for name in digests if name.rsplit("/", 1)[-1] in chosen}
    )
    if corrupt is not None:
        raise BundleError(
            f"{path / corrupt}: expected the file that {MANIFEST} lists, got none or an altered "
            "one; copy the bundle again or run jobs/finetune.py"
        )
    config = _read_config(folder)
    calibrated, members = CALIBRATION_FILE in digests, count_members(digests)
    if set(files_of(config, calibrated=calibrated, members=members)) != set(digests):
        raise BundleError(
            f"{path / MANIFEST}: expected the same weights of each member, and {SPATIAL_FILE} if "
            f"and only if the networks refine a base map ({config.model.unet.base_map}), got "
            f"{', '.join(digests)}; {RETRAIN}"
        )
    return BundleDescription(
        path,
        config,
        sha256_file(folder / MANIFEST),
        calibration=read_calibration(folder) if calibrated else None,
        member_count=members,
    )


def _read_config(folder: Path) -> BundleConfig:
    source = folder / CONFIG_FILE
    try:
        return parse_dataclass(BundleConfig, read_json(source), source=str(source))
    except ConfigError as error:
        raise BundleError(f"{error}; {RETRAIN}") from error


def first_corrupt_file(folder: Path, digests: Mapping[str, str]) -> str | None:
    """Return the name of the first file that is missing or differs from its recorded SHA-256.

    Return None if all files are intact.
    """
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != digest:
            return name
    return None

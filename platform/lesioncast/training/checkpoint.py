"""Checkpoints of a run: complete folders such as `step_000120`.

Each folder holds safetensors of the weights, of their moving average (ema) and of Adam's moments.
Its state.json holds the step, the run's identity (all that shapes the weights) and the SHA-256 of
the other files. A run resumes only from checkpoints with its own identity.

A run resumes from these folders alone and not from Ray Train's record of checkpoints. Ray Train
records a checkpoint after it was written, and refuses to start if a recorded one is gone.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lesioncast.bundle.description import first_corrupt_file
from lesioncast.bundle.io import Weights, digests_of, first_non_finite, read_tensors, write_tensors
from lesioncast.bundle.json_files import read_json, write_json
from lesioncast.errors import ChangedSettingsError, NonFiniteStateError, TrainingError
from lesioncast.training.state import TrainState
from storage.atomic import atomic_directory

logger = logging.getLogger(__name__)

STATE = "state.json"
EMA = "ema"

Identity = Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """Checkpoint on disk: its folder, step, run identity, and SHA-256 of each file."""

    folder: Path
    step: int
    identity: Identity
    digests: Mapping[str, str]

    def tensors(self, group: str, prefix: str = "") -> Weights:
        """Read the tensors of a group of `TrainState.tensors` whose names begin with `prefix`."""
        return read_tensors(self.folder / f"{group}.safetensors", prefix)

    def verify(self) -> None:
        """Raise TrainingError if a file is missing or altered."""
        corrupt = first_corrupt_file(self.folder, self.digests)
        if corrupt is not None:
            raise TrainingError(
                f"{self.folder / corrupt}: expected the file as it was written, got none or an "
                "altered one"
            )


def save_checkpoint(run: Path, state: TrainState, identity: Identity) -> Checkpoint:
    """Write a checkpoint of `state` in `run`. Its folder appears only when complete.

    Raise NonFiniteStateError and write nothing if the state is not finite.
    """
    folder, groups = run / f"step_{state.step:06d}", state.tensors()
    _require_finite(groups, folder)
    with atomic_directory(folder) as partial_folder:
        for group, tensors in groups.items():
            write_tensors(partial_folder / f"{group}.safetensors", tensors)
        digests = digests_of(partial_folder, [f"{group}.safetensors" for group in groups])
        content = {"step": state.step, "identity": identity, "sha256": digests}
        write_json(partial_folder / STATE, content)
    return Checkpoint(folder, state.step, identity, digests)


def _require_finite(groups: Mapping[str, Mapping[str, Tensor]], folder: Path) -> None:
    # A run would resume from such a checkpoint for ever, and pruning removes the good ones. The
    # loss does not tell: a step can overflow the weights although its own loss was finite.
    for group, tensors in groups.items():
        name = first_non_finite(tensors)
        if name is not None:
            raise NonFiniteStateError(
                f"{folder}: expected finite {group}, got an infinity or NaN in {name}; no "
                "checkpoint was written. Lower the stage's learning_rate, or set its precision to "
                "float32, and run again: it resumes from the last checkpoint"
            )


def latest_valid(run: Path) -> Checkpoint | None:
    """Return the newest checkpoint of a run that passes verification, or None.

    Newer checkpoints that fail verification are renamed to `.step_N.altered` and logged.
    """
    for folder in reversed(_folders(run)):
        try:
            checkpoint = open_checkpoint(folder)
            checkpoint.verify()
        except TrainingError as error:
            aside = folder.with_name(f".{folder.name}.altered")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            logger.warning(
                "%s; renamed to %s, resuming from an older checkpoint", error, aside.name
            )
        else:
            return checkpoint
    return None


def checkpoints(run: Path) -> list[Checkpoint]:
    """Return the checkpoints of a run, oldest first, without verifying them."""
    return [open_checkpoint(folder) for folder in _folders(run)]


def _folders(run: Path) -> list[Path]:
    return sorted(run.glob("step_*"), key=lambda folder: int(folder.name.removeprefix("step_")))


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open the checkpoint in `folder` without verifying it.

    Raise TrainingError if its state.json is missing or altered, and OSError if it cannot be read:
    a disk that does not answer alters no checkpoint.
    """
    try:
        content = read_json(folder / STATE)
        return Checkpoint(folder, content["step"], content["identity"], content["sha256"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError) as error:
        raise TrainingError(
            f"{folder / STATE}: expected the state of a checkpoint, got {error!r}"
        ) from error


def load_into(state: TrainState, checkpoint: Checkpoint) -> None:
    """Restore `state` from a checkpoint."""
    state.restore(checkpoint.step, partial(Checkpoint.tensors, checkpoint))


def prune(run: Path, *, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints of a run."""
    for folder in _folders(run)[:-keep]:
        shutil.rmtree(folder)


def require_same_run(checkpoint: Checkpoint, identity: Identity) -> None:
    """Raise ChangedSettingsError, naming the changed keys, if the identities differ."""
    before, now = dict(_flatten(checkpoint.identity)), dict(_flatten(identity))
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if changed:
        listed = "; ".join(f"{key} was {before.get(key)}, is {now.get(key)}" for key in changed)
        raise ChangedSettingsError(
            f"{checkpoint.folder}: expected a checkpoint of the same settings, but {listed}. "
            "Set them back to resume, or run with --fresh to discard the run and start over"
        )


def _flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, JSON value) of every leaf of a nested mapping."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, json.dumps(tree)

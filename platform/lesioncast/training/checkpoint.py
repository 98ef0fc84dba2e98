"""Checkpoints of a run: folders `step_000120` that are whole, and resumed only by their own run.

A run finds its way back by these folders alone, not by what Ray Train remembers of them: Train
takes note of a checkpoint after it was written, and refuses to start where one that it knows is
gone. Each holds safetensors of weights, their average (ema) and Adam's moments, and state.json: the
step, the run's identity (all that shapes its weights) and the sha256 of the other files.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lesioncast.bundle.io import (
    Weights,
    digests_of,
    first_corrupt_file,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from lesioncast.errors import ChangedSettingsError, TrainingError
from lesioncast.training.state import TrainState
from storage.atomic import atomic_directory

logger = logging.getLogger(__name__)

STATE = "state.json"
EMA = "ema"

Identity = Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk after `step` steps of the run with that `identity`."""

    folder: Path
    step: int
    identity: Identity
    digests: Mapping[str, str]

    def tensors(self, group: str, prefix: str = "") -> Weights:
        """One group of tensors, those under `prefix`; see `TrainState.tensors`."""
        return read_tensors(self.folder / f"{group}.safetensors", prefix)

    def verify(self) -> None:
        """Raises TrainingError where a file is missing or altered."""
        altered = first_corrupt_file(self.folder, self.digests)
        if altered is not None:
            raise TrainingError(f"{self.folder / altered}: missing or altered since it was written")


def save_checkpoint(run: Path, state: TrainState, identity: Identity) -> Checkpoint:
    """Write `run`/step_..., which appears only when complete."""
    folder = run / f"step_{state.step:06d}"
    with atomic_directory(folder) as partial_folder:
        groups = state.tensors()
        for group, tensors in groups.items():
            write_tensors(partial_folder / f"{group}.safetensors", tensors)
        digests = digests_of(partial_folder, [f"{group}.safetensors" for group in groups])
        record = {"step": state.step, "identity": identity, "sha256": digests}
        write_json(partial_folder / STATE, record)
    return Checkpoint(folder, state.step, identity, digests)


def latest_valid(run: Path) -> Checkpoint | None:
    """The newest checkpoint of a run that is as it was written.

    Newer ones that are not are set aside under a name that is none of a checkpoint, and named.
    """
    for folder in reversed(_folders(run)):
        try:
            checkpoint = open_checkpoint(folder)
            checkpoint.verify()
        except TrainingError as error:
            aside = folder.with_name(f".{folder.name}.altered")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            logger.warning("%s; set aside as %s, going back to the one before", error, aside.name)
        else:
            return checkpoint
    return None


def checkpoints(run: Path) -> list[Checkpoint]:
    """The checkpoints of a run, oldest first."""
    return [open_checkpoint(folder) for folder in _folders(run)]


def _folders(run: Path) -> list[Path]:
    return sorted(run.glob("step_*"), key=lambda folder: int(folder.name.removeprefix("step_")))


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, not verified yet. Raises TrainingError where it has no record."""
    try:
        record = read_json(folder / STATE)
        return Checkpoint(folder, record["step"], record["identity"], record["sha256"])
    except (OSError, ValueError, KeyError) as error:
        raise TrainingError(
            f"{folder / STATE}: expected the record of a checkpoint, got {error!r}"
        ) from error


def load_into(state: TrainState, checkpoint: Checkpoint) -> None:
    """Put `state` where the checkpoint left off."""
    state.restore(checkpoint.step, partial(Checkpoint.tensors, checkpoint))


def prune(run: Path, *, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints of a run."""
    for folder in _folders(run)[:-keep]:
        shutil.rmtree(folder)


def require_same_run(checkpoint: Checkpoint, identity: Identity) -> None:
    """Raises ChangedSettingsError, naming the keys, where the checkpoint is of another run."""
    before, now = dict(_flatten(checkpoint.identity)), dict(_flatten(identity))
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if changed:
        listed = "; ".join(f"{key} was {before.get(key)}, is {now.get(key)}" for key in changed)
        raise ChangedSettingsError(
            f"{checkpoint.folder}: made with other settings: {listed}. "
            "Set them back to resume, or run with --fresh to discard the run and start over"
        )


def _flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, json.dumps(tree)

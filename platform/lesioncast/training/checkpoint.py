"""Checkpoints of a run: folders `step_000120` that are whole, and resumed only by their own run.

Each holds safetensors of weights, their average (ema) and Adam's moments, and state.json: the step,
the run's identity (all that shapes its weights) and the sha256 of the other files.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lesioncast.training.errors import ChangedSettingsError, TrainingError
from lesioncast.training.files import (
    altered_file,
    digests_of,
    read_json,
    read_tensors,
    whole_folder,
    write_json,
    write_tensors,
)
from lesioncast.training.optimisation import Weights
from lesioncast.training.state import TrainState

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
        altered = altered_file(self.folder, self.digests)
        if altered is not None:
            raise TrainingError(
                f"{self.folder / altered}: missing or altered since it was written; "
                f"remove {self.folder} to resume from the checkpoint before it"
            )


def save_checkpoint(run: Path, state: TrainState, identity: Identity) -> Checkpoint:
    """Write `run`/step_..., which appears only when complete."""
    folder = run / f"step_{state.step:06d}"
    with whole_folder(folder) as partial_folder:
        groups = state.tensors()
        for group, tensors in groups.items():
            write_tensors(partial_folder / f"{group}.safetensors", tensors)
        digests = digests_of(partial_folder, [f"{group}.safetensors" for group in groups])
        record = {"step": state.step, "identity": identity, "sha256": digests}
        write_json(partial_folder / STATE, record)
    return Checkpoint(folder, state.step, identity, digests)


def checkpoints(run: Path) -> list[Checkpoint]:
    """The checkpoints of a run, oldest first."""
    found = [open_checkpoint(path.parent) for path in run.glob(f"step_*/{STATE}")]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, not verified yet."""
    record = read_json(folder / STATE)
    return Checkpoint(folder, record["step"], record["identity"], record["sha256"])


def resume(state: TrainState, checkpoint: Checkpoint) -> None:
    """Put `state` where the checkpoint left off."""
    checkpoint.verify()
    state.restore(checkpoint.step, partial(Checkpoint.tensors, checkpoint))


def prune(run: Path, *, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints of a run."""
    for checkpoint in checkpoints(run)[:-keep]:
        shutil.rmtree(checkpoint.folder)


def require_same_run(checkpoint: Checkpoint, identity: Identity) -> None:
    """Raises ChangedSettingsError, naming the keys, where the checkpoint is of another run."""
    before, now = dict(_leaves(checkpoint.identity)), dict(_leaves(identity))
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    if changed:
        listed = "; ".join(f"{key} was {before.get(key)}, is {now.get(key)}" for key in changed)
        raise ChangedSettingsError(
            f"{checkpoint.folder}: made with other settings: {listed}. "
            "Set them back to resume, or run with --fresh to discard the run and start over"
        )


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, json.dumps(tree)

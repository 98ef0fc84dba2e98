"""Train the reader of FLAIR to recognise the masks of lesions at the candidates, then freeze it.

Recognising lesions is the task that makes the reader good. Trained on the outcome alone it learns
little, because one bit a patient says little about thousands of voxels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from lesioncast.priors.flair_reader.candidates import Candidates, find_candidates, masks_at
from lesioncast.priors.flair_reader.reader import (
    SESSION_CHOICES,
    FlairReader,
    shown_numbers,
)
from lesioncast.priors.flair_reader.volumes import Spacing

STEPS, CASES, LEARNING_RATE = 1500, 8, 5e-3
OTHER_SESSION_DROPOUT = 0.4
STORED = torch.float16
#: Masks that the reader learns to recognise, in the order of `ReaderCases.of`.
READER_MASKS = ("w000/t2", "w000/gad", "w048/t2", "w048/gad", "w048/net2")


@dataclass(frozen=True)
class ReaderCases:
    """Candidates of n training cases and their masks, -1 / +1 or 0 if the mask is missing."""

    candidates: Candidates
    #: T2 and gadolinium at each session's candidates, int8 [n, session, k, 2].
    static_masks: Tensor
    #: NET2 and gadolinium of w048 at the candidates of change, int8 [n, k, 2].
    change_masks: Tensor

    @classmethod
    def of(cls, flair: Tensor, masks: Tensor, spacing: Spacing) -> "ReaderCases":
        """Return the cases of FLAIR [n, session, s, h, w] with `READER_MASKS` [n, 5, s, h, w].

        Voxels have `spacing` mm. Features are stored as half floats, since all training cases are
        kept in memory.
        """
        found = find_candidates(flair, spacing)
        pairs = ((0, masks[:, :2]), (1, masks[:, 2:4]))
        static_masks = [
            masks_at(pair, found.static_index[:, session], spacing) for session, pair in pairs
        ]
        change_masks = masks_at(masks[:, [4, 3]], found.change_index, spacing)
        return cls(
            replace(found, static=found.static.to(STORED), change=found.change.to(STORED)),
            torch.stack(static_masks, dim=1).to(torch.int8),
            change_masks.to(torch.int8),
        )

    @classmethod
    def cat(cls, parts: "Sequence[ReaderCases]") -> "ReaderCases":
        """Concatenate cases."""
        candidates = [part.candidates for part in parts]
        joined = {
            field.name: torch.cat([getattr(part, field.name) for part in candidates])
            for field in fields(Candidates)
        }
        return cls(
            Candidates(**joined),
            torch.cat([part.static_masks for part in parts]),
            torch.cat([part.change_masks for part in parts]),
        )

    def rows(self, index: Tensor) -> "ReaderCases":
        """Return the cases at `index` with features as floats."""
        columns = {
            field.name: getattr(self.candidates, field.name)[index] for field in fields(Candidates)
        }
        chosen = Candidates(**columns)
        return ReaderCases(
            replace(chosen, static=chosen.static.float(), change=chosen.change.float()),
            self.static_masks[index],
            self.change_masks[index],
        )

    def batches(self, size: int = 64) -> "Iterator[ReaderCases]":
        """Yield the cases in order, `size` at a time."""
        for first in range(0, len(self.static_masks), size):
            yield self.rows(torch.arange(first, min(first + size, len(self.static_masks))))


def fit_flair_reader(
    reader: FlairReader, cases: ReaderCases, *, seed: int, steps: int = STEPS
) -> float:
    """Fit the reader and return its mean loss over the last tenth of the steps, in nats.

    It begins with new weights of `seed`. The loss is the binary cross entropy of a candidate,
    averaged over the candidates of a task and summed over tasks. A missing mask counts nothing.
    """
    draw = torch.Generator().manual_seed(seed)
    initialise(reader, draw)
    reader.requires_grad_(requires_grad=True)
    weights = [*reader.static.parameters(), *reader.change.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(steps):
        batch = cases.rows(torch.randint(len(cases.static_masks), (CASES,), generator=draw))
        loss = recognition_loss(reader, batch, draw)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    reader.requires_grad_(requires_grad=False)
    standardise(reader, cases)
    return float(torch.stack(losses[-max(1, steps // 10) :]).mean())


def initialise(reader: FlairReader, draw: torch.Generator) -> None:
    """Draw new weights of both perceptrons, as PyTorch's linear layers do by default."""
    for layer in (*reader.static, *reader.change):
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            for weight in layer.parameters():
                nn.init.uniform_(weight, -bound, bound, generator=draw)


def recognition_loss(reader: FlairReader, batch: ReaderCases, draw: torch.Generator) -> Tensor:
    """Return the loss of a batch, whose cases lose the other session at random."""
    candidates = batch.candidates
    given = torch.rand(len(candidates.present), generator=draw) >= OTHER_SESSION_DROPOUT
    loss = masked_loss(
        reader.change(candidates.change),
        batch.change_masks * candidates.present.all(1)[:, None, None],
    )
    for session in range(2):
        logits = reader.lesion_logits(candidates, session, given)
        known = candidates.present[:, session, None, None]
        loss = loss + masked_loss(logits, batch.static_masks[:, session] * known)
    return loss


def masked_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the summed cross entropy of two kinds of mask, each averaged over its known voxels.

    logits and masks [b, k, 2]; masks are -1 / +1, or 0 if missing.
    """
    known = (masks != 0).to(logits)
    each = functional.binary_cross_entropy_with_logits(
        logits, (masks > 0).to(logits), weight=known, reduction="none"
    )
    return (each.sum((0, 1)) / known.sum((0, 1)).clamp(min=1)).sum()


@torch.no_grad()
def standardise(reader: FlairReader, cases: ReaderCases) -> None:
    """Set `mean` and `scale` of the reader's numbers to those of the training cases.

    They are over all choices of sessions that have the number. A number that no case has, or that
    does not vary, keeps mean 0 and scale 1.
    """
    reader.mean.zero_()
    reader.scale.fill_(1.0)
    amounts = torch.cat([reader.amounts(part.candidates) for part in cases.batches()])
    shown = shown_numbers(like=amounts).bool()
    choices = torch.tensor(SESSION_CHOICES)
    possible = (cases.candidates.present[:, None] | ~choices).all(2)
    for number in range(len(reader.mean)):
        values = amounts[..., number][possible & shown[:, number]]
        if len(values) > 1 and values.std() > 0:
            reader.mean[number], reader.scale[number] = values.mean(), values.std()


@torch.no_grad()
def readings(reader: FlairReader, cases: ReaderCases) -> Tensor:
    """Return the reader's numbers of all cases from each choice of sessions, [n, choice, 9]."""
    return torch.cat([reader.read(part.candidates) for part in cases.batches()])

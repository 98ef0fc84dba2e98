"""Read nine numbers of lesions from the FLAIR of both sessions.

Two small perceptrons give each candidate its probabilities of lying in a lesion. Sums over the
candidates estimate how much lesion there is, and in how many pieces.
"""

import torch
from torch import Tensor, nn

from lesioncast.priors.flair_reader.candidates import (
    CHANGE_FEATURES,
    OTHER_SESSION,
    STATIC_FEATURES,
    Candidates,
    count_pieces,
    find_candidates,
)
from lesioncast.priors.flair_reader.volumes import Spacing

HIDDEN = 32
CERTAIN = 0.7  # probability above which a voxel belongs to a piece that is counted
SESSION_NUMBERS, CHANGE_NUMBERS = 3, 3
NUMBERS = 2 * SESSION_NUMBERS + CHANGE_NUMBERS
#: What each number is about.
NUMBER_NAMES = (
    *["lesions in FLAIR of w000"] * SESSION_NUMBERS,
    *["lesions in FLAIR of w048"] * SESSION_NUMBERS,
    *["new lesions between FLAIR of w000 and w048"] * CHANGE_NUMBERS,
)
#: The mask that each number stands in for.
NUMBER_MASKS = (
    *["w000/t2"] * SESSION_NUMBERS,
    *["w048/t2"] * SESSION_NUMBERS,
    *["w048/net2"] * CHANGE_NUMBERS,
)
FLAIR_SESSIONS = ("w000", "w048")
#: The choices of sessions that a reading covers, [choice, session].
SESSION_CHOICES = ((False, False), (True, False), (False, True), (True, True))


def recogniser(features: int) -> nn.Sequential:
    """Return a perceptron from the features of a candidate to the logits of two kinds of lesion."""
    return nn.Sequential(
        nn.Linear(features, HIDDEN),
        nn.SiLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.SiLU(),
        nn.Linear(HIDDEN, 2),
    )


class FlairReader(nn.Module):
    """Reader of FLAIR [b, session, s, h, w] of w000 and w048 with voxels of `spacing` mm.

    `static` recognises T2 and gadolinium lesions at the brightest voxels of a session. `change`
    recognises new (NET2) and gadolinium lesions of w048 where brightness rose. `mean` and `scale`
    [9] standardise the numbers as in the training cases.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, spacing: Spacing) -> None:
        super().__init__()
        self.spacing = spacing
        self.static, self.change = recogniser(STATIC_FEATURES), recogniser(CHANGE_FEATURES)
        self.register_buffer("mean", torch.zeros(NUMBERS))
        self.register_buffer("scale", torch.ones(NUMBERS))

    @torch.no_grad()
    def forward(self, flair: Tensor) -> Tensor:
        """Return the numbers of FLAIR [b, session, s, h, w] from each of `SESSION_CHOICES`.

        The result is [b, choice, 9]. The choice of both sessions uses the one to judge the other.
        A missing session is zero everywhere, and the choices that show it have no meaning.
        """
        if not flair.any():
            return flair.new_zeros(len(flair), len(SESSION_CHOICES), NUMBERS)
        # Half precision would lose single candidates of a sum.
        with torch.autocast(flair.device.type, enabled=False):
            return self.read(find_candidates(flair, self.spacing))

    @torch.no_grad()
    def read(self, candidates: Candidates) -> Tensor:
        """Return what `forward` returns for the images of these candidates, [b, choice, 9]."""
        standardised = (self.amounts(candidates) - self.mean) / self.scale
        return standardised * shown_numbers(like=standardised)

    def amounts(self, candidates: Candidates) -> Tensor:
        """Return log(1 + amount) of the nine numbers from each choice, [b, choice, 9].

        Three of each session are the sum of squared probabilities of T2 lesion, the number of
        pieces of what is T2 lesion by a probability above 0.7, and the sum of squared probabilities
        of gadolinium. Three of the change are the same of NET2 and gadolinium. Squares leave little
        of the many voxels that are hardly lesions.
        """
        alone = [self._amounts_of_session(candidates, session, other=False) for session in (0, 1)]
        beside = [self._amounts_of_session(candidates, session, other=True) for session in (0, 1)]
        change = _sums(self.change(candidates.change), candidates.change_index, candidates.shape)
        choices = [torch.cat([*alone, change], dim=1)] * 3 + [torch.cat([*beside, change], dim=1)]
        return torch.stack(choices, dim=1).log1p()

    def _amounts_of_session(self, candidates: Candidates, session: int, *, other: bool) -> Tensor:
        """Return the three sums of a session's candidates, with or without the `other`, [b, 3]."""
        given = torch.full((len(candidates.static),), other, device=candidates.static.device)
        logits = self.lesion_logits(candidates, session, given)
        return _sums(logits, candidates.static_index[:, session], candidates.shape)

    def lesion_logits(self, candidates: Candidates, session: int, given: Tensor) -> Tensor:
        """Return the logits of T2 and gadolinium lesion at a session's candidates, [b, k, 2].

        The other session counts as present where it exists and `given` [b] is True.
        """
        given = given & candidates.present[:, 1 - session]
        features = candidates.static[:, session].clone()
        features[..., OTHER_SESSION] *= given[:, None, None]
        logits: Tensor = self.static(features)
        return logits


def _sums(logits: Tensor, index: Tensor, shape: Tensor) -> Tensor:
    """Return the sums of two kinds of lesion at the voxels `index` [b, k] of a grid, [b, 3].

    `logits` [b, k, 2] are those of the kinds. `shape` as in `count_pieces`.
    """
    lesion, gad = logits.sigmoid().unbind(-1)
    pieces = count_pieces((lesion > CERTAIN).to(lesion), index, shape)
    return torch.stack([lesion.square().sum(1), pieces, gad.square().sum(1)], dim=1)


def shown_numbers(*, like: Tensor) -> Tensor:
    """Return 1 for the numbers that each choice of sessions has, else 0, [choice, 9]."""
    shown = [
        [first] * SESSION_NUMBERS + [second] * SESSION_NUMBERS + [first and second] * CHANGE_NUMBERS
        for first, second in SESSION_CHOICES
    ]
    return torch.tensor(shown, device=like.device).to(like)


def reading_of_sessions(readings: Tensor, present: Tensor) -> Tensor:
    """Return the reading [b, number] from the sessions that are `present`, bool [b, session].

    `readings` [b, choice, number] are those from every choice.
    """
    choice = present[:, 0].long() + 2 * present[:, 1].long()
    return readings[torch.arange(len(readings), device=readings.device), choice]

"""Mix the members of a bundle: networks and priors of different training seeds.

A forecast of M members is that of the mixture in which each has the share 1 / M (deep ensembles:
Lakshminarayanan et al. 2017, section 2.4):

    p(x | arm, patient) = 1 / M sum over m and k of p_m(load k | arm, patient) p_m(x | load k, ...).

So P(active), the probabilities of the lesion load classes and the map are means over the members.
The seed of a sample draws the load class from the mean probabilities, at the quantile at which it
draws that of a single member. It then draws the member, in proportion to the probability that each
gives the class, whose networks draw the mask. Consecutive seeds therefore spread the loads as
evenly, and the Monte Carlo errors are the same, as with one member.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lesioncast.diffusion.lesion_load import (
    LesionLoadPrior,
    LoadExpectations,
    mix_expectations,
    sample_load_class,
)
from lesioncast.diffusion.model import LesionDiffusion, SampleCondition
from lesioncast.diffusion.settings.process import SamplerConfig
from lesioncast.forecasting.encoding import MemberEncodings
from lesioncast.forecasting.ensemble import MemberOutcomes
from lesioncast.seeds import member_quantile


def expectations_by_arm(
    priors: Sequence[LesionLoadPrior], patients: Sequence[Tensor]
) -> tuple[LoadExpectations, list[tuple[MemberOutcomes, ...]]]:
    """Return the expected outcomes of one patient by arm, and those of each member by arm.

    `patients` are the patient's features [1, feature], by the prior of each member. The members'
    own are empty where there is one member.
    """
    by_member = [
        prior.probabilities_by_arm(patient) for prior, patient in zip(priors, patients, strict=True)
    ]
    mixed = mix_expectations(priors, by_member)
    if len(priors) == 1:
        return mixed, [()] * len(mixed.p_active)
    stated = [priors[0].expectations_of(probability) for probability in by_member]
    members = [map(MemberOutcomes, one.p_active.tolist(), one.lesions.tolist()) for one in stated]
    return mixed, list(zip(*members, strict=True))


def beyond_training(
    priors: Sequence[LesionLoadPrior], patients: Sequence[Tensor]
) -> tuple[str, ...]:
    """Return what of a patient lies outside the training range of any member's prior."""
    names = (
        name
        for prior, patient in zip(priors, patients, strict=True)
        for name in prior.beyond_training(patient)
    )
    return tuple(dict.fromkeys(names))


class MemberDraw(NamedTuple):
    """A sample to draw: the member whose networks draw it, and its condition."""

    member: int
    condition: SampleCondition


def draw_members(
    models: Sequence[LesionDiffusion], patient: MemberEncodings, arm: int, seeds: Sequence[int]
) -> list[MemberDraw]:
    """Return what each seed draws of a patient under an arm before any network runs.

    `models` and the encodings of the patient are by member.
    """
    loads = MixedLoads.of(models, patient, arm)
    draws = []
    for seed in seeds:
        member = loads.draw_member(seed)
        condition = models[member].sample_condition(patient[member], arm, loads.logits, seed)
        draws.append(MemberDraw(member, condition))
    return draws


class MixedLoads(NamedTuple):
    """Lesion load classes of a patient under an arm.

    `logits` [class] are those of the mixture, None for models without lesion loads.
    `by_member` [member, class] are the probabilities that each member gives the classes; one column
    of equal weights for models without lesion loads.
    """

    logits: Tensor | None
    by_member: Tensor

    @classmethod
    def of(
        cls, models: Sequence[LesionDiffusion], patient: MemberEncodings, arm: int
    ) -> "MixedLoads":
        """Compute the classes of a patient under an arm with all members."""
        of_members = [
            model.lesion_load_logits(encoding, arm)
            for model, encoding in zip(models, patient, strict=True)
        ]
        logits = [one for one in of_members if one is not None]
        if not logits:
            return cls(None, torch.ones(len(models), 1))
        by_member = torch.stack(logits).double().softmax(1).cpu()
        # The logits of a single member stay as they are, to the last bit.
        return cls(logits[0] if len(logits) == 1 else by_member.mean(0).log(), by_member)

    def draw_member(self, seed: int) -> int:
        """Return the member that a seed draws, given the load class that it draws."""
        load = 0 if self.logits is None else sample_load_class(self.logits, seed)
        *edges, total = accumulate(self.by_member[:, load].tolist())
        return int(np.searchsorted(edges, member_quantile(seed) * total, side="right"))


def sample_members(
    models: Sequence[LesionDiffusion],
    draws: Sequence[MemberDraw],
    seeds: Sequence[int],
    sampler: SamplerConfig,
    *,
    spatial_shape: Sequence[int],
) -> Tensor:
    """Sample one x for each draw and seed, n of each -> [n, 2, s, h, w].

    Each member draws its samples in batches of its own.
    """
    places, samples = [], []
    for member, model in enumerate(models):
        rows = [row for row, draw in enumerate(draws) if draw.member == member]
        if rows:
            conditions = [draws[row].condition for row in rows]
            own_seeds = [seeds[row] for row in rows]
            samples.append(
                model.sample_under(conditions, own_seeds, sampler, spatial_shape=spatial_shape)
            )
            places += rows
    return torch.cat(samples)[torch.tensor(places).argsort()]

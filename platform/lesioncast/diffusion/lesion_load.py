"""Sample the class of NET2's lesion load first, then constrain the diffusion to that class.

The lesions of a patient have a common cause: most patients have none, some have many. Networks that
decide voxel by voxel in few steps sample lesions too independently, so that too many patients have
some. Here the lesion load is sampled first, from p(load | arm, patient), and conditions the
networks: p(x | arm, patient) = sum over loads of p(x | load, arm, patient) p(load | arm, patient).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lesioncast.diffusion.blocks import zero_module
from lesioncast.diffusion.covariates import covariate_features, covariate_width, missing_covariates
from lesioncast.imaging.covariates import Covariate
from lesioncast.priors.flair_reader.reader import (
    FLAIR_SESSIONS,
    NUMBER_MASKS,
    NUMBER_NAMES,
    NUMBERS,
    FlairReader,
    reading_of_sessions,
)
from lesioncast.priors.input_patterns import PATTERNS, patterns_of
from lesioncast.seeds import load_quantile

HIDDEN = 32
BURDEN_FEATURES = 3  # numbers per channel
READING_LIMIT = 2.5  # standard deviations at which the numbers read off FLAIR are clipped
MIN_PROBABILITY = 1e-7  # the largest float32 below 1 is about 1 - 1e-7
SHIFT_LIMIT, BISECTIONS = 32.0, 18  # accurate to 0.0001 in log odds
_FLAIR_CHANNELS = tuple(f"{session}/flair" for session in FLAIR_SESSIONS)


def lesion_load_class(net2: Tensor, thresholds: Sequence[int]) -> Tensor:
    """Return the lesion load class [b] of masks in -1 / +1 [b, s, h, w].

    Class 0 has fewer than `thresholds[0]` lesion voxels. Class k has `thresholds[k - 1]` or more,
    and fewer than `thresholds[k]`.
    """
    voxels = (net2 > 0).flatten(1).sum(1)
    return torch.bucketize(voxels, torch.tensor(thresholds, device=voxels.device), right=True)


def rows_with_lesions(lesion_load: Tensor) -> Tensor:
    """Return the rows of `lesion_load` [b] that have lesions, or row 0 if none has."""
    rows = torch.nonzero(lesion_load).flatten()
    return rows if len(rows) else rows.new_zeros(1)


def constrain_to_load(x_hat: Tensor, lesion_load: Tensor, thresholds: Sequence[int]) -> Tensor:
    """Constrain the expected number of lesion voxels of NET2's x_hat [b, s, h, w].

    If a mask has at most k lesion voxels, so has its expectation, whatever z_t. If a mask has a
    lesion, its expectation is at least one voxel. A row outside these bounds has all its log odds
    shifted by the same amount.
    """
    # The lower bound is one voxel for every class with lesions. Demanding the class's threshold
    # would sample the missing voxels scattered.
    bounds = torch.tensor([0, *thresholds, x_hat[0].numel() + 1], device=x_hat.device)
    probability = (x_hat + 1) / 2
    expected = probability.flatten(1).sum(1)
    total = expected.clamp(lesion_load.clamp(max=1).to(expected), bounds[lesion_load + 1] - 1.0)
    constrained = x_hat.clone()
    for row in torch.nonzero(expected != total).flatten().tolist():
        constrained[row] = 2 * shift_log_odds_to_sum(probability[row], total[row]) - 1
    return constrained


def ensure_one_lesion(x: Tensor) -> Tensor:
    """Return NET2 x [s, h, w] with the most likely voxel set to 1 if no voxel is positive."""
    if (x > 0).any():
        return x
    with_lesion = x.flatten().clone()
    with_lesion[with_lesion.argmax()] = 1.0
    return with_lesion.view_as(x)


def shift_log_odds_to_sum(probability: Tensor, total: Tensor) -> Tensor:
    """Shift the log odds of probabilities, of any shape, so that they sum to `total`.

    All log odds are shifted by one amount, found by bisection.
    """
    if total == 0:
        return torch.zeros_like(probability)
    log_odds = probability.clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY).logit()
    return torch.sigmoid(log_odds + shift_to_sum(log_odds, total))


def shift_to_sum(log_odds: Tensor, total: Tensor) -> float:
    """Return the amount by which to shift all `log_odds` so that the probabilities sum to `total`.

    The root is found by bisection.
    """
    below, above = -SHIFT_LIMIT, SHIFT_LIMIT
    for _ in range(BISECTIONS):
        shift = (below + above) / 2
        if torch.sigmoid(log_odds + shift).sum() < total:
            below = shift
        else:
            above = shift
    return above


class LoadExpectations(NamedTuple):
    """Expected outcomes in closed form, without sampling.

    They are of one patient under each arm [arm], or of each patient under one arm [b]. `edges` are
    the quantiles at which `sample_load_class` passes to the next class.
    """

    #: Probability of a new lesion.
    p_active: Tensor
    #: Expected number n of new lesions.
    lesions: Tensor
    #: Expectation of log(1 + n).
    log_lesions: Tensor
    #: Standard deviation of the mean of log(1 + n) over the lesion load classes.
    log_sd: Tensor
    #: Probability of each class and those before it, [arm or b, class - 1].
    edges: Tensor


class LesionLoadPrior(nn.Module):
    """Prior p(lesion load | arm, patient), a perceptron on a few numbers of each patient.

    It needs no other network but the `reader` of FLAIR, if it has one, so that it can be fitted to
    all training cases at once. It starts with equal probabilities for all classes. `channels` are
    those of the condition. `lesions` and `log_lesions` [class] are the means of the number of
    lesions n and of log(1 + n) over the training cases of each class.

    More lesion in an image never makes fewer new lesions likelier. `steps` gives the log odds of
    each class to the class below (adjacent-category logits, Agresti 2010, section 4.1). They rise
    with the amounts and numbers of lesions, because `constrain` keeps the weights on these, and all
    those of `steps`, from being negative (Sill 1998). P(active) and the expected count then rise
    too. Weights on arm, presence, intensity and covariates have any sign.

    `arm_offset` [pattern, arm] is added to the log odds of a lesion. It makes mean P(active) of an
    arm's training cases their observed share (calibration in the large), which the shrunk weights
    miss. There is one for each pattern of images that a patient may have.

    `lowest` and `highest` [feature] are the ranges in the training cases. A feature outside them is
    clipped, because nothing shows that the prior holds beyond.
    """

    lesions: Tensor
    log_lesions: Tensor
    arm_offset: Tensor
    lowest: Tensor
    highest: Tensor

    def __init__(
        self,
        channels: Sequence[str],
        *,
        arms: int,
        classes: int,
        covariates: Sequence[Covariate],
        reader: FlairReader | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.arms, self.covariates = tuple(channels), arms, tuple(covariates)
        patient = BURDEN_FEATURES * len(self.channels) + covariate_width(covariates)
        patient += NUMBERS if reader else 0
        self.hidden = nn.Linear(patient + arms, HIDDEN)
        self.steps = zero_module(nn.Linear(HIDDEN, classes - 1))
        self.reader = reader
        self.register_buffer("lesions", torch.zeros(classes))
        self.register_buffer("log_lesions", torch.zeros(classes))
        self.register_buffer("arm_offset", torch.zeros(PATTERNS, arms))
        largest = torch.finfo(torch.float32).max
        self.register_buffer("lowest", torch.full((patient,), -largest))
        self.register_buffer("highest", torch.full((patient,), largest))

    @torch.no_grad()
    def constrain(self) -> None:
        """Set each weight that would let more lesion lower the load to 0."""
        of_lesions = torch.tensor([*self._measures_lesions, *[False] * self.arms])
        self.hidden.weight[:, of_lesions] = self.hidden.weight[:, of_lesions].clamp(min=0)
        self.steps.weight.clamp_(min=0)

    @property
    def _measures_lesions(self) -> list[bool]:
        """Return which features [feature] are an amount or a number of lesions."""
        burden = [
            [False, not name.endswith("/flair"), not name.endswith("/flair")]
            for name in self.channels
        ]
        covariates = [False] * covariate_width(self.covariates)
        return [*sum(burden, []), *covariates, *([True] * NUMBERS if self.reader else [])]

    def read(self, condition: Tensor) -> Tensor:
        """Return the reader's numbers of c_f [b, channels, s, h, w], [b, choice, number].

        They are those from each choice of sessions. Without a reader there is no number.
        """
        if self.reader is None:
            return condition.new_zeros(len(condition), 1, 0)
        missing = torch.zeros_like(condition[:, 0])
        flair = [
            condition[:, self.channels.index(name)] if name in self.channels else missing
            for name in _FLAIR_CHANNELS
        ]
        readings: Tensor = self.reader(torch.stack(flair, dim=1))
        return readings

    def patient_features(
        self, burden: Tensor, covariates: Tensor | None, readings: Tensor | None = None
    ) -> Tensor:
        """Return features of patients, [b, feature].

        `burden` is the lesion burden [b, channel, 3], which also says which FLAIR is there.
        `covariates` are encoded values [b, covariate], NaN if missing; None means that all are
        missing. `readings` [b, choice, number] are those of `read`, which a prior with a reader
        needs.
        """
        parts = [burden.flatten(1)]
        if self.covariates:
            if covariates is None:
                covariates = missing_covariates(self.covariates, burden)
            parts.append(covariate_features(covariates, self.covariates))
        if self.reader is not None:
            assert readings is not None
            numbers = reading_of_sessions(readings, self._present(burden, _FLAIR_CHANNELS))
            parts.append(numbers.masked_fill(self._present(burden, NUMBER_MASKS), 0))
        return torch.cat(parts, dim=1)

    def _present(self, burden: Tensor, names: Sequence[str]) -> Tensor:
        """Return whether each of the channels `names` is there, bool [b, name]."""
        absent = torch.zeros(len(burden), dtype=torch.bool, device=burden.device)
        present = [
            burden[:, self.channels.index(name)].any(1) if name in self.channels else absent
            for name in names
        ]
        return torch.stack(present, dim=1)

    def forward(self, patient: Tensor, arm: Tensor) -> Tensor:
        """Return the logits of the classes, [b, classes], of patients under arm [b].

        The last arm is the null arm.
        """
        one_hot_arm = functional.one_hot(arm, self.arms).to(patient)
        rising = torch.tanh(self.hidden(torch.cat([self.clip(patient), one_hot_arm], dim=1)))
        active = self.steps(rising).cumsum(1)
        offset = self.arm_offset[self.pattern(patient), arm]
        return functional.pad(active + offset[:, None], (1, 0))

    def clip(self, patient: Tensor) -> Tensor:
        """Return features [b, feature] within the training range; a missing one stays 0."""
        clipped = torch.where(patient == 0, 0, patient.clamp(self.lowest, self.highest))
        if self.reader is None:
            return clipped
        numbers = clipped[:, -NUMBERS:].clamp(-READING_LIMIT, READING_LIMIT)
        return torch.cat([clipped[:, :-NUMBERS], numbers], dim=1)

    def beyond_training(self, patient: Tensor) -> tuple[str, ...]:
        """Return what of one patient [1, feature] lies outside the range of the training cases."""
        outside = (patient != 0) & ((patient < self.lowest) | (patient > self.highest))
        names = zip(self.feature_names, outside[0].tolist(), strict=True)
        return tuple(dict.fromkeys(name for name, is_outside in names if is_outside))

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Return what each feature is about, in words, [feature]; one name may stand for more."""
        burden = [
            name
            for channel in self.channels
            for name in (channel, _amount_name(channel), f"number of lesions of {channel}")
        ]
        covariates = [one.name for one in self.covariates for _ in range(covariate_width([one]))]
        return (*burden, *covariates, *(NUMBER_NAMES if self.reader else ()))

    def pattern(self, patient: Tensor) -> Tensor:
        """Return which images patients [b, feature] have, [b], as one of `PATTERNS`."""
        burden = patient[:, : BURDEN_FEATURES * len(self.channels)]
        present = burden.view(len(patient), len(self.channels), BURDEN_FEATURES).any(2)
        return patterns_of(present, self.channels)

    def expected_outcomes(self, patient: Tensor) -> LoadExpectations:
        """Return the expected outcomes of one patient [1, feature] under every arm but the null."""
        return self.expectations_of(self.probabilities_by_arm(patient))

    def expectations(self, patient: Tensor, arm: Tensor) -> LoadExpectations:
        """Return the expected outcomes of patients [b, feature] under arm [b], [b] each."""
        return self.expectations_of(self.probabilities(patient, arm))

    def probabilities(self, patient: Tensor, arm: Tensor) -> Tensor:
        """Return the probabilities of the classes of patients [b, feature], [b, class], float64."""
        logits: Tensor = self(patient, arm)
        return logits.double().softmax(1)

    def probabilities_by_arm(self, patient: Tensor) -> Tensor:
        """Return the probabilities of one patient [1, feature] under each arm but the null."""
        arms = torch.arange(self.arms - 1, device=patient.device)
        return self.probabilities(patient.expand(len(arms), -1), arms)

    def expectations_of(self, probability: Tensor) -> LoadExpectations:
        """Return the expected outcomes, [b] each, from probabilities of the classes [b, class].

        They may be a mean over priors that were fitted to the same cases.
        """
        log_lesions = probability @ self.log_lesions.double()
        deviation = self.log_lesions.double() - log_lesions[:, None]
        return LoadExpectations(
            p_active=1 - probability[:, 0],
            lesions=probability @ self.lesions.double(),
            log_lesions=log_lesions,
            log_sd=(probability * deviation**2).sum(1).sqrt(),
            edges=probability.cumsum(1)[:, :-1],
        )


def mix_expectations(
    priors: Sequence[LesionLoadPrior], probabilities: Sequence[Tensor]
) -> LoadExpectations:
    """Return the expected outcomes of the mixture in which each prior has the same share.

    `probabilities` [b, class] are those that each prior gives the classes. All priors have the
    class means of the same training cases.
    """
    return priors[0].expectations_of(torch.stack(list(probabilities)).mean(0))


def _amount_name(channel: str) -> str:
    return f"{'mean intensity' if channel.endswith('/flair') else 'lesion volume'} of {channel}"


def sample_load_class(logits: Tensor, seed: int) -> int:
    """Sample a lesion load class from logits [classes] with a sample's seed.

    The seed gives a quantile, and the inverse of the cumulative distribution gives the class. One
    seed has the same quantile under every arm, which lowers the variance of differences between
    arms (common random numbers).
    """
    quantile = torch.tensor([load_quantile(seed)], dtype=torch.float64)
    upper_edges = logits.double().cpu().softmax(0).cumsum(0)[:-1].contiguous()
    return int(torch.searchsorted(upper_edges, quantile, right=True))

"""Encode patients for the networks, with their base map where the bundle has a spatial prior.

Each member of a bundle encodes a patient for itself.
"""

import hashlib
from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor

from lesioncast.arrays import Floats
from lesioncast.bundle.bundle import Bundle, Member
from lesioncast.diffusion.controlnet import PatientEncoding
from lesioncast.diffusion.settings.process import SamplerConfig
from lesioncast.forecasting.sampling import ConditioningArrays

KEPT_MAPS = 16  # patients whose log density is kept; a batch of samples often has several


MemberEncodings = tuple[PatientEncoding, ...]
"""Encodings of one patient by each member of a bundle."""


class PatientEncoder:
    """Encoder of patients with all members of a bundle, whose networks are on `device`."""

    def __init__(self, bundle: Bundle, *, device: str) -> None:
        sampler = bundle.config.sampler
        self._members = [MemberEncoder(one, sampler, device=device) for one in bundle.members]

    def __call__(self, inputs: ConditioningArrays) -> MemberEncodings:
        """Return the encodings of one patient."""
        return tuple(encode(inputs) for encode in self._members)

    def density(self, inputs: ConditioningArrays) -> Floats | None:
        """Return the mean density of the members' spatial priors [s, h, w]; None without them."""
        log_densities = [encode.log_density(inputs) for encode in self._members]
        known = [one.cpu().numpy() for one in log_densities if one is not None]
        return np.mean(np.exp(known), axis=0) if known else None


class MemberEncoder:
    """Encoder of patients with the networks of one member, which are on `device`.

    The spatial prior is evaluated once for a patient, whatever the number of arms, samples and
    steps: a tenth of a second would otherwise be paid for each of them.
    """

    def __init__(self, member: Member, sampler: SamplerConfig, *, device: str) -> None:
        self._member, self._sampler, self._device = member, sampler, device
        self._log_densities: OrderedDict[bytes, Tensor] = OrderedDict()

    def __call__(self, inputs: ConditioningArrays) -> PatientEncoding:
        """Return the encoding of one patient."""
        condition, covariates = (
            torch.from_numpy(array).to(self._device)
            for array in (inputs.condition, inputs.covariates)
        )
        return self._member.model.encode_patient(
            condition, covariates, self._sampler, self.log_density(inputs)
        )

    def log_density(self, inputs: ConditioningArrays) -> Tensor | None:
        """Return the spatial prior's log density [s, h, w]; None for networks without one."""
        base = self._member.base
        if base is None:
            return None
        # The content is the key: an analysis may exchange the images of a case.
        images = hashlib.sha256(inputs.condition.tobytes())
        if inputs.parcellation is not None:
            images.update(inputs.parcellation.tobytes())
        key = images.digest()
        if key not in self._log_densities:
            density = base.log_density(inputs.condition, inputs.parcellation)
            self._log_densities[key] = torch.from_numpy(density).to(self._device)
        self._log_densities.move_to_end(key)
        while len(self._log_densities) > KEPT_MAPS:
            self._log_densities.popitem(last=False)
        return self._log_densities[key]

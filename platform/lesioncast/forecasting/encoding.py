"""Encode patients for the networks, with their base map where the bundle has a spatial prior."""

import hashlib
from collections import OrderedDict

import torch
from torch import Tensor

from lesioncast.bundle.bundle import Bundle
from lesioncast.diffusion.controlnet import PatientEncoding
from lesioncast.forecasting.sampling import ConditioningArrays

KEPT_MAPS = 16  # patients whose log density is kept; a batch of samples often has several


class PatientEncoder:
    """Encoder of patients with the networks of a bundle, which are on `device`.

    The spatial prior is evaluated once for a patient, whatever the number of arms, samples and
    steps: a tenth of a second would otherwise be paid for each of them.
    """

    def __init__(self, bundle: Bundle, *, device: str) -> None:
        self._bundle, self._device = bundle, device
        self._log_densities: OrderedDict[bytes, Tensor] = OrderedDict()

    def __call__(self, inputs: ConditioningArrays) -> PatientEncoding:
        """Return the encoding of one patient."""
        condition, covariates = (
            torch.from_numpy(array).to(self._device)
            for array in (inputs.condition, inputs.covariates)
        )
        return self._bundle.model.encode_patient(
            condition, covariates, self._bundle.config.sampler, self.log_density(inputs)
        )

    def log_density(self, inputs: ConditioningArrays) -> Tensor | None:
        """Return the spatial prior's log density [s, h, w]; None for a bundle without one."""
        base = self._bundle.base
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

"""Check one-step predictions: lesion volume predicted from the true z_t, by noise level.

    PYTHONPATH=.:platform python tests/benchmarks/sampling/one_step_predictions.py \
        --bundle out/demo/bundle --store STORE

An error seen here was learned by the networks. An error seen only in samples arises during sampling
(`solvers.py`). The noise level at which the AUC rises is the one that decides whether a mask has
lesions. Networks with a lesion load get the true one. The arm is the one received.
"""

import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from lesioncast.diffusion.lesion_load import lesion_load_class
from lesioncast.diffusion.model import LesionDiffusion
from lesioncast.diffusion.objective import NET2, add_noise
from lesioncast.forecasting.runtime import store_reader
from lesioncast.forecasting.sampling import ModelInput
from lesioncast.imaging.channels import TARGET_CHANNELS, encode_case
from storage import Store
from tests.benchmarks.sampling.study_cli import load_study, study_parser

LOGSNR = (-6, -4, -2, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3)
HEAD = (
    "| logsnr | volume | active cases | of that in lesions | empty cases | empty, a P > 0.5 "
    "| AUC of volume |"
)
BATCH = 8

Floats = npt.NDArray[np.float64]


def main(argv: Sequence[str] | None = None) -> int:
    """Print one row per noise level: predicted lesion voxels per case."""
    store, bundle, cases = load_study(
        study_parser(__doc__, cases=120, split="val").parse_args(argv)
    )
    read = store_reader(store, bundle.config.model)
    x = torch.from_numpy(np.stack([target_of_case(store, case.index) for case in cases]))
    condition = torch.from_numpy(
        np.stack([read(ModelInput(case.index)).condition for case in cases])
    )
    arm = torch.tensor([case.arm_index for case in cases])
    volume = (x[:, 1] > 0).double().sum((1, 2, 3)).numpy()
    active = volume > 0
    print(HEAD, "|" + "---|" * 7, sep="\n")
    print(f"| true | {volume.mean():.1f} | {volume[active].mean():.1f} | | 0 | | |")
    for logsnr in LOGSNR:
        predicted = [
            predict_lesions(bundle.model, x[rows], condition[rows], arm[rows], logsnr=logsnr)
            for rows in torch.arange(len(cases)).split(BATCH)
        ]
        print(row(logsnr, np.concatenate(predicted), active))
    return 0


def target_of_case(store: Store, index: int) -> npt.NDArray[np.float32]:
    """Return x of a case, [2, s, h, w]."""
    return encode_case(store.read(index), channels=TARGET_CHANNELS)


@torch.no_grad()
def predict_lesions(
    model: LesionDiffusion, x: Tensor, condition: Tensor, arm: Tensor, *, logsnr: float
) -> Floats:
    """Return [n, 3] per case: predicted lesion voxels, those in true lesions, greatest P."""
    at = torch.full((len(x),), float(logsnr))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    least = model.config.unet.lesion_load_thresholds
    load = lesion_load_class(x[:, NET2], least) if least else None
    denoise = model.denoiser(condition, arm, guidance=1.0, lesion_load=load)
    x_hat = denoise(add_noise(x, noise, at), at)
    chance, lesion = (x_hat[:, 1] + 1) / 2, (x[:, 1] > 0).float()
    axes = (1, 2, 3)
    measures = [chance.sum(axes), (chance * lesion).sum(axes), chance.amax(axes)]
    return torch.stack(measures, dim=1).double().numpy()


def row(logsnr: float, measures: Floats, active: npt.NDArray[np.bool_]) -> str:
    """Return one line of the table."""
    volume, inside, greatest = measures.T
    return (
        f"| {logsnr} | {volume.mean():.1f} | {volume[active].mean():.1f} "
        f"| {inside[active].mean():.1f} | {volume[~active].mean():.2f} "
        f"| {(greatest[~active] > 0.5).mean():.0%} | {roc_auc_score(active, volume):.3f} |"
    )


if __name__ == "__main__":
    sys.exit(main())

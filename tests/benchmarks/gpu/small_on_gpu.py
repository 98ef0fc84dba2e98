"""Train a medium-sized model on one GPU in minutes and evaluate it as in Table 3.

    PYTHONPATH=.:platform python3 tests/benchmarks/gpu/small_on_gpu.py --cases FOLDER --minutes 4

Both stages with the project's own networks, losses, orders and random numbers, every case on the
device; `--cases` is simulated where it does not exist. Needs nibabel, nilearn and zarr, not Ray.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lesioncast.arms import PAPER_ARM_NAMES
from lesioncast.diffusion.controlnet import ControlNet
from lesioncast.diffusion.lesion_load import lesion_load_class
from lesioncast.diffusion.model import LesionDiffusion, expected_outcomes
from lesioncast.diffusion.objective import NET2
from lesioncast.diffusion.settings.model import ModelConfig
from lesioncast.diffusion.settings.networks import CONDITION, ControlConfig, UNetConfig
from lesioncast.diffusion.settings.process import ObjectiveConfig, SamplerConfig, ScheduleConfig
from lesioncast.diffusion.unet import UNet
from lesioncast.evaluation.analysis.schema import EvaluationReport
from lesioncast.evaluation.analysis.scoring import EvaluationContext, EvaluationInputs
from lesioncast.evaluation.evaluate import evaluate
from lesioncast.evaluation.metrics.ensemble_summary import EnsembleSummary
from lesioncast.evaluation.reporting.markdown.report import render_markdown
from lesioncast.evaluation.settings import EvaluationSettings
from lesioncast.forecasting.ensemble import ExpectedOutcomes
from lesioncast.forecasting.sampling import independent_seeds
from lesioncast.imaging.channels import BASELINE, channels_outside_sessions, parse_channels
from lesioncast.imaging.lesions import count_lesions
from lesioncast.training import randomness
from lesioncast.training.data.dataset import Batch, CaseDataset
from lesioncast.training.data.order import Rows, active_first, batch_rows
from lesioncast.training.lesion_load_prior.data import PriorTrainingData
from lesioncast.training.lesion_load_prior.dropout import PriorDropout
from lesioncast.training.lesion_load_prior.fit import fit_lesion_load_prior
from lesioncast.training.modules import (
    FinetuneModule,
    LossInputs,
    PretrainModule,
    rows_to_train_on,
    stage_loss,
)
from lesioncast.training.settings import TrainSettings
from lesioncast.training.state import TrainState, initial_state
from tests.benchmarks.data.simulated_cases import (
    from_section,
    load_sections,
    open_split,
    write_splits,
)

SMALL = Path("jobs/configs/small.yaml")
STAGE1_SHARE = 0.4  # of the minutes
PACED = {"cuda": (5, 20), "cpu": (1, 2)}  # steps before the clock starts, and on it
SEED = 0
LATER = channels_outside_sessions(parse_channels(CONDITION), (BASELINE,))


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate cases, train both stages, sample the test cases and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Path, required=True, help="folder of train and test")
    parser.add_argument("--subjects", type=int, default=2131, help="simulated where none are")
    parser.add_argument("--minutes", type=float, default=4.0, help="of training, both stages")
    parser.add_argument("--samples", type=int, default=5, help="a held-out case")
    parser.add_argument("--config", type=Path, default=SMALL)
    parser.add_argument("--out", type=Path, help="folder for small.json and small.md")
    args = parser.parse_args(argv)
    sections = load_sections(args.config)
    if not args.cases.exists():
        write_splits(args.cases, sections, subjects=args.subjects, workers=os.cpu_count() or 1)
        print_progress("cases simulated")
    run = Run(sections, args.cases)
    unet, stage1 = run.pretrain(60 * args.minutes * STAGE1_SHARE)
    control, stage2 = run.finetune(unet, 60 * args.minutes * (1 - STAGE1_SHARE))
    report = run.evaluate(LesionDiffusion(unet, control, run.model), samples=args.samples)
    training = {"device": run.name, "stage1": asdict(stage1), "stage2": asdict(stage2)}
    text = f"{json.dumps(training)}\n\n{render_markdown(report)}"
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        content = {**asdict(report), "training": training}
        (args.out / "small.json").write_text(json.dumps(content, indent=1))
        (args.out / "small.md").write_text(text)
    return 0


@dataclass(frozen=True)
class StageResult:
    """A stage's result. `loss` is the mean over the last tenth of its steps."""

    steps: int
    ms_per_step: float
    loss: float


class DeviceCases:
    """The training or test cases on the device. float16 holds x and the condition without loss."""

    def __init__(self, cases: CaseDataset, device: torch.device) -> None:
        self.active = cases.active
        self.arm = torch.from_numpy(cases.arm.astype(np.int64)).to(device)
        with ThreadPoolExecutor() as threads:
            pieces = list(threads.map(lambda row: _encoded(cases, row), range(len(cases.arm))))
        self.x, self.condition = (torch.cat(half).to(device) for half in zip(*pieces, strict=True))

    def __len__(self) -> int:
        return len(self.arm)


def _encoded(cases: CaseDataset, row: int) -> tuple[Tensor, Tensor]:
    kept = randomness.ConditionDropout(
        *(np.zeros(shape, bool) for shape in (1, (1, len(CONDITION)), (1, 0)))
    )
    batch = cases.batch(np.array([row]), kept, null_arm=0, condition=parse_channels(CONDITION))
    assert batch.condition is not None
    return batch.x.half(), batch.condition.half()


class Run:
    """One preset on one device."""

    def __init__(self, sections: dict[str, dict[str, Any]], folder: Path) -> None:
        torch.manual_seed(SEED)
        self.on_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.on_gpu else "cpu")
        self.name = torch.cuda.get_device_name() if self.on_gpu else "CPU"
        torch.backends.cudnn.benchmark = True
        self.model = ModelConfig(
            PAPER_ARM_NAMES,
            from_section(UNetConfig, sections["unet"]),
            from_section(ControlConfig, sections["control"]),
            from_section(ScheduleConfig, sections.get("schedule", {})),
            from_section(ObjectiveConfig, sections["objective"]),
        )
        self.settings = {
            name: from_section(TrainSettings, sections[name]) for name in ("pretrain", "finetune")
        }
        self.sampler = from_section(SamplerConfig, sections["sampler"])
        if not self.on_gpu:
            self.sampler = replace(self.sampler, precision="float32")
        self.spacing = tuple(sections["store"]["spacing"])
        self.train, self.test = (open_split(folder / name) for name in ("train", "test"))
        self.resident = DeviceCases(self.train.cases, self.device)
        print_progress(f"{len(self.resident)} training cases on {self.name}")

    def pretrain(self, seconds: float) -> tuple[UNet, StageResult]:
        """Train stage 1 and return its averaged weights."""
        with self.device:
            unet = UNet(self.model.unet)
        return unet, self.train_for("pretrain", PretrainModule(unet), seconds)

    def finetune(self, unet: UNet, seconds: float) -> tuple[ControlNet, StageResult]:
        """Train stage 2 on the frozen UNet and return its averaged weights."""
        with self.device:
            control = ControlNet.from_unet(self.model.control, unet)
        trained = self.train_for("finetune", FinetuneModule(unet, control), seconds)
        if control.lesion_load_prior is not None:
            patients, settings = self.patients(control), self.settings["finetune"]
            nats = fit_lesion_load_prior(
                control.lesion_load_prior,
                patients,
                PriorDropout(settings.dropout_rates),
                seed=SEED,
            )
            print_progress(f"lesion load: {nats:.3f} nats a case")
        return control, trained

    def patients(self, control: ControlNet) -> PriorTrainingData:
        """Return the data that the lesion-load prior is fitted to."""
        resident = self.resident
        burden = [control.encode_burden(some.float()) for some in resident.condition.split(32)]
        load = lesion_load_class(resident.x[:, NET2], self.model.unet.lesion_load_thresholds)
        none = torch.empty(len(resident), 0, device=self.device)
        lesions = torch.from_numpy(self.train.outcomes.plain).float().to(self.device)
        readings = torch.empty(len(resident), 1, 0, device=self.device)
        return PriorTrainingData(torch.cat(burden), none, resident.arm, load, lesions, readings)

    def train_for(self, stage: str, networks: nn.Module, seconds: float) -> StageResult:
        """Train the networks for the given seconds, as many steps as their measured pace allows."""
        compiled: Any = networks
        if self.on_gpu:
            networks.to(memory_format=torch.channels_last)
            compiled = torch.compile(networks)
        start = {name: weight.clone() for name, weight in networks.state_dict().items()}
        before, timed = PACED[self.device.type]
        for _ in self.steps(stage, initial_state(networks, self.settings[stage]), compiled, before):
            pass
        pace = initial_state(networks, self.settings[stage])
        self.synchronise()
        began = time.monotonic()
        for _ in self.steps(stage, pace, compiled, timed):
            pass
        self.synchronise()
        each = (time.monotonic() - began) / timed
        networks.load_state_dict(start)
        steps = max(10, int(seconds / each))
        warmup = min(self.settings[stage].warmup, steps // 10)
        self.settings[stage] = replace(self.settings[stage], steps=steps, warmup=warmup)
        print_progress(f"{stage}: {steps} steps of {1e3 * each:.1f} ms")
        state = initial_state(networks, self.settings[stage])
        losses = []
        began = time.monotonic()
        for loss in self.steps(stage, state, compiled, steps):
            losses.append(loss)
            if state.step % max(1, steps // 10) == 0:
                self.report(stage, losses[-max(1, steps // 10) :], state.step)
        self.synchronise()
        networks.load_state_dict({**networks.state_dict(), **state.ema})
        last = torch.stack(losses[-max(1, steps // 10) :]).mean()
        return StageResult(steps, 1e3 * (time.monotonic() - began) / steps, float(last))

    def steps(
        self, stage: str, state: TrainState, networks: nn.Module, number: int
    ) -> Iterator[Tensor]:
        """Take `number` steps as training/loop.py does; return their losses."""
        settings = self.settings[stage]
        weight = settings.flair_weight
        objective = self.model.objective
        if weight is not None:
            objective = replace(objective, flair_weight=weight)
        for _ in range(number):
            x, arm, condition = self.batch(settings, state.step, conditioned=stage == "finetune")
            rows, lesion_load = rows_to_train_on(x, self.model.unet.lesion_load_thresholds)
            t = randomness.stratified_timesteps(SEED, state.step, batch_size=settings.batch_size)
            eps = randomness.gaussian(
                SEED,
                state.step,
                positions=rows.cpu().numpy(),
                shape=tuple(x.shape[1:]),
                device=self.device,
            )
            shown = None if condition is None else condition[rows]
            inputs = LossInputs(
                Batch(x[rows], arm[rows], shown),
                lesion_load,
                torch.from_numpy(t).to(self.device)[rows],
                eps,
            )
            with self.autocast():
                loss = stage_loss(
                    networks,
                    inputs,
                    schedule=self.model.schedule,
                    objective=objective,
                    cases=len(x),
                )
            loss.backward()
            nn.utils.clip_grad_norm_(state.parameters.values(), settings.gradient_clip)
            state.update(settings)
            yield loss.detach()

    def batch(
        self, settings: TrainSettings, step: int, *, conditioned: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return x, arm and, in stage 2, the condition of a step, after dropout."""
        active = self.resident.active
        rows = batch_rows(
            active,
            step,
            seed=SEED,
            batch_size=settings.batch_size,
            balanced=settings.balanced,
        )
        drops = randomness.condition_dropout(
            SEED,
            step,
            batch_size=settings.batch_size,
            post_baseline=LATER,
            rates=settings.dropout_rates,
        )
        chosen, no_arm, no_channel = (
            torch.from_numpy(array).to(self.device)
            for array in (active_first(rows, active), drops.arm, drops.channels)
        )
        arm = self.resident.arm[chosen].masked_fill(no_arm, self.model.unet.null_arm)
        x = self.resident.x[chosen].float()
        if not conditioned:
            return x, arm, None
        condition = self.resident.condition[chosen].float()
        return x, arm, condition.masked_fill(no_channel[:, :, None, None, None], 0)

    def evaluate(self, model: LesionDiffusion, *, samples: int) -> EvaluationReport:
        """Evaluate `samples` samples of each test case under its factual arm."""
        test_cases, arms = DeviceCases(self.test.cases, self.device), self.test.outcomes.arm
        seeds = [independent_seeds(SEED, name, samples) for name in self.test.outcomes.subjects]
        pieces = [
            (np.arange(first, min(first + 32, len(test_cases))), k)
            for k in range(samples)
            for first in range(0, len(test_cases), 32)
        ]

        def drawn(piece: tuple[Rows, int]) -> list[tuple[int, int]]:
            rows, k = piece
            chosen = torch.from_numpy(rows).to(self.device)
            masks = model.sample_masks(
                test_cases.condition[chosen].float(),
                test_cases.arm[chosen],
                [seeds[row][k] for row in rows],
                self.sampler,
            )
            lesions = [count_lesions(mask, self.spacing) for mask in masks.cpu().numpy()]
            return [(lesion_counts.plain, lesion_counts.opened) for lesion_counts in lesions]

        # Noise comes from the CPU, one thread a sample's generator: several batches at once.
        with ThreadPoolExecutor(8 if self.on_gpu else 1) as threads:
            pairs = [count for piece in threads.map(drawn, pieces) for count in piece]
        counts = np.array(pairs, np.int64).reshape(samples, len(test_cases), 2).transpose(1, 2, 0)
        print_progress(f"{samples} samples of {len(test_cases)} held-out cases drawn")
        summaries = {
            (case, int(arm)): EnsembleSummary(
                plain=counts[case][0],
                opened=counts[case][1],
                expected=self.expected_outcomes(
                    model, test_cases.condition[case].float(), int(arm)
                ),
            )
            for case, arm in enumerate(arms)
        }
        context = EvaluationContext(
            PAPER_ARM_NAMES,
            self.spacing,
            bundle="no bundle",
            seed=SEED,
            disclaimers=("Simulated trial, one training seed; no statement about real patients.",),
        )
        settings = EvaluationSettings(samples=samples)
        inputs = EvaluationInputs(self.train.outcomes, self.test.outcomes, summaries)
        return evaluate(inputs, context, settings).report

    def expected_outcomes(
        self, model: LesionDiffusion, condition: Tensor, arm: int
    ) -> ExpectedOutcomes | None:
        """Return the expected outcomes of one case under its factual arm."""
        prior = model.control.lesion_load_prior
        if prior is None:
            return None
        stated = expected_outcomes(prior, model.config.control.masks, condition, None)
        return ExpectedOutcomes(
            float(stated.p_active[arm]),
            float(stated.lesions[arm]),
            float(stated.log_lesions[arm]),
            load_edges=tuple(stated.edges[arm].tolist()),
        )

    def autocast(self) -> Any:
        """Use bfloat16 on a GPU only: it slows down CPUs without native support."""
        return torch.autocast("cuda", dtype=torch.bfloat16) if self.on_gpu else nullcontext()

    def report(self, stage: str, losses: list[Tensor], step: int) -> None:
        """Print a line of progress. Raise an error if the loss is not finite."""
        mean = float(torch.stack(losses).mean())
        if not np.isfinite(mean):
            raise FloatingPointError(f"{stage}: expected a finite loss by step {step}, got {mean}")
        print_progress(f"{stage}: step {step}, loss {mean:.4g}")

    def synchronise(self) -> None:
        """Wait until the device has finished all queued work."""
        if self.on_gpu:
            torch.cuda.synchronize()


def print_progress(line: str) -> None:
    """Print a line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""Compare a demo run with the demo of commit b787f94, value by value and bit for bit.

    PYTHONPATH=.:platform python tests/benchmarks/compare_with_baseline.py OLD NEW

OLD and NEW are the folders that `make demo` writes, such as out/demo; OLD is of commit b787f94.
Keys were renamed since then. The tables below map each old key to its new name. Compared are

- evaluation/metrics.json and the columns of evaluation/cases.csv,
- the summary (`*_forecast.json`) and the sidecars (`*_probseg.json`) of every forecast,
- the voxels and the affine of every probability map,
- the weights of the bundle.

Every number must be equal to the last bit. The exit code is 0 where all are, else 1. Sentences are
printed where their wording differs. Digests, dates and commands are skipped: a bundle's digest
covers the renamed keys of its configuration. report.html, tables.md, estimates.csv and the figures
follow from what is compared.
"""

import argparse
import csv
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from safetensors.numpy import load_file

Rules = Sequence[tuple[str, str]]
"""(pattern, replacement) for the dotted path of a value; applied in order."""

EVALUATION: Rules = (
    (r"^notices\.", "disclaimers."),
    (r"^warnings\b", "identifiability_warnings"),
    (r"^(identifiability_warnings)\.leak\b", r"\1.leakage_probes"),
    (r"(leakage_probes\.\d+)\.of$", r"\1.target"),
    (r"(leakage_probes\.\d+)\.within$", r"\1.within_trial"),
    (r"(leakage_probes\.\d+)\.(classes|cases|auc)\b", r"\1.leakage.\2"),
    (r"(leakage_probes\.\d+)\.left_out\b", r"\1.leakage.excluded_classes"),
    (r"(leakage_probes\.\d+)\.by_class\b", r"\1.leakage.auc_by_class"),
    (r"positivity\.without_trial$", "positivity.cases_without_trial"),
    (r"positivity\.trials\b", "positivity.cases_by_trial"),
    (r"positivity\.never_together\b", "positivity.pairs_without_common_trial"),
    (r"(positivity\.arms\.\w+)\.offered$", r"\1.offered_share"),
    (r"^bootstrap$", "bootstrap_resamples"),
    (r"^opening\.mm$", "opening.in_plane_mm"),
    (r"^opening\.idle$", "opening.no_op"),
    (r"^cohort\b", "baseline_characteristics"),
    (r"^(baseline_characteristics\.\w+\.\w+)\.count\b", r"\1.mean_count"),
    (r"^(baseline_characteristics\.\w+\.\w+)\.activity\b", r"\1.active_share"),
    (r"^(variants\.\w+\.activity\.\w+\.methods\.\w+)\.mean$", r"\1.mean_probability"),
    (r"^(variants\.\w+\.count\.\w+\.methods\.\w+)\.mean$", r"\1.mean_count"),
    (r"^(variants\.\w+\.activity\.\w+\.methods\.\w+)\.ap\b", r"\1.average_precision"),
    (r"\.auc_within\b", ".auc_within_arm"),
    (r"\.true_mean$", ".observed_mean"),
    (r"(differences\.\d+)\.of$", r"\1.method"),
    (r"(differences\.\d+)\.minus$", r"\1.minus_method"),
    (r"(differences\.\d+)\.(value|low|high|defined)$", r"\1.difference.\2"),
    (r"^(masks\.groups\.\w+)\.with_lesions$", r"\1.cases_with_lesions"),
    (r"^(masks\.groups\.\w+)\.energy_of_empty\b", r"\1.energy_distance_of_empty"),
    (r"^(masks\.groups\.\w+)\.energy\b", r"\1.energy_distance"),
    (r"^(masks\.groups\.\w+)\.empty\.lesions\b", r"\1.empty.lesions_per_sample"),
    (r"^(masks\.groups\.\w+)\.empty\.volume\b", r"\1.empty.mm3_per_sample"),
    (r"^(masks\.groups\.\w+)\.empty\.silent\b", r"\1.empty.empty_sample_share"),
    (r"^(masks\.groups\.\w+)\.empty\b", r"\1.lesion_free"),
    (r"^(masks\.voxels\.rows\.\d+)\.share\b", r"\1.lesion_share"),
    (r"^probabilities\b", "probability_calibration"),
    (r"(curve\.\d+)\.mean$", r"\1.mean_probability"),
    (r"(curve\.\d+)\.share$", r"\1.active_share"),
    (r"^calibration\.activity\b", "calibration.platt_scaling"),
    (r"^calibration\.counts\b", "calibration.count_intervals"),
    (r"(count_intervals\.\d+)\.score$", r"\1.quantile"),
    (r"(count_intervals\.\d+)\.likely\b", r"\1.coverage_range"),
    (r"^compared\b", "comparison_sessions"),
    (r"^ladder\b", "activity_by_arm"),
    (r"^activity_by_arm\.falling$", "activity_by_arm.falls_at_every_step"),
    (r"^activity_by_arm\.rising\b", "activity_by_arm.arms_above_previous"),
    (r"^(activity_by_arm\.arms\.\w+)\.mc_error$", r"\1.monte_carlo_error"),
    (r"^(activity_by_arm\.arms\.\w+)\.train_rate$", r"\1.training_rate"),
    (r"^effects\.reference$", "effects.reference_arm"),
    (r"\.seeds_saved\b", ".variance_reduction"),
    (r"^effects\.ranking\.patients$", "effects.ranking.cases"),
    (r"^effects\.ranking\.tau\b", "effects.ranking.kendall_tau"),
    (r"^effects\.ranking\.tau_of_means$", "effects.ranking.kendall_tau_of_means"),
    (r"^effects\.policy\b", "effects.policies"),
    (r"^(effects\.policies\.\d+)\.value\b", r"\1"),
    (r"^(effects\.policies\.\d+)(\.\w+)?\.best_single\b", r"\1\2.best_single_arm"),
    (r"^(effects\.policies\.\d+\.\w+)\.random\b", r"\1.random_arm"),
    (r"(\.model_minus_best_single)\b", r"\1_arm"),
    (r"^contrasts\.rows\b", "trial_contrasts.contrasts"),
    (r"^contrasts\b", "trial_contrasts"),
    (r"^(trial_contrasts\.contrasts\.\d+)\.reference$", r"\1.reference_arm"),
    (r"^(trial_contrasts\.contrasts\.\d+)\.cases\.0$", r"\1.arm_cases"),
    (r"^(trial_contrasts\.contrasts\.\d+)\.cases\.1$", r"\1.reference_cases"),
    (r"^published\b", "paper_results"),
    (r"^(paper_results\.\w+)\.ap\b", r"\1.average_precision"),
)
# Values of metrics.json that are names of metrics.
METRIC_NAMES = {"ap": "average_precision", "auc_within": "auc_within_arm"}
# The first three notices were the same for all forecasts; further ones are notes now.
FORECAST: Rules = (
    (r"^notices\.([012])$", r"disclaimers.\1"),
    *((rf"^notices\.{number}$", f"notes.{number - 3}") for number in range(3, 10)),
    (r"^warnings\b", "identifiability_warnings"),
    (r"\.p_active\.stated$", ".p_active.exact"),
    (r"\.count\.stated$", ".count.expected"),
    (r"\bcount_mean_unopened$", "count_mean"),
    (r"\bcount_mean_opened$", "count_mean_after_opening"),
)
SIDECAR: Rules = ((r"^Warnings\b", "IdentifiabilityWarnings"), (r"^Remarks\b", "Notes"))
# Digests, dates, code and schema numbers: they differ between two runs of equal numbers.
SKIPPED = re.compile(
    r"^(schema|bundle|case|provenance\..*|BundleDigest|CaseDigest|code|store|date)$"
)
# Tensors were stored under these file names in both versions.
WEIGHTS = ("unet.safetensors", "controlnet.safetensors")


@dataclass
class Comparison:
    """What has been compared so far, and what differs."""

    equal: int = 0
    differing: list[str] = field(default_factory=list)
    reworded: list[str] = field(default_factory=list)
    skipped: int = 0

    def add(self, name: str, old: Any, new: Any) -> None:
        """Compare two values; strings that differ are wording."""
        if type(old) is type(new) and old == new:
            self.equal += 1
        elif isinstance(old, str) and isinstance(new, str):
            self.reworded.append(f"{name}: {old!r} is now {new!r}")
        else:
            self.differing.append(f"{name}: {old!r} became {new!r}")


def leaves(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) of every leaf of JSON content; an empty container is a leaf."""
    if isinstance(content, dict) and content:
        for name, child in content.items():
            yield from leaves(child, f"{path}.{name}" if path else name)
    elif isinstance(content, list) and content:
        for index, child in enumerate(content):
            yield from leaves(child, f"{path}.{index}" if path else str(index))
    else:
        yield path, content


def new_path(path: str, rules: Rules) -> str:
    """Return the path that a value has now."""
    for pattern, replacement in rules:
        path = re.sub(pattern, replacement, path)
    return path


def compare_json(
    result: Comparison,
    old: Path,
    new: Path,
    rules: Rules,
    names: Mapping[str, str],
) -> None:
    """Compare every value of two JSON files; `names` renames values that are names."""
    kept = dict(leaves(json.loads(new.read_text())))
    mapped = {}
    for path, value in leaves(json.loads(old.read_text())):
        mapped[new_path(path, rules)] = names.get(value, value) if isinstance(value, str) else value
    for path, value in mapped.items():
        if SKIPPED.match(path):
            result.skipped += 1
        elif path in kept:
            result.add(f"{new.name} {path}", value, kept[path])
        elif value is not None and not is_absent_container(path, value, kept):
            result.differing.append(f"{new.name} {path}: {value!r} is missing")
    for path, value in kept.items():
        # An undefined score had no key; now it is null.
        known = path in mapped or value is None or SKIPPED.match(path)
        if not known and not is_absent_container(path, value, mapped):
            result.differing.append(f"{new.name} {path}: {value!r} is new")


def is_absent_container(path: str, value: Any, other: Mapping[str, Any]) -> bool:
    """Return whether an empty list or mapping stands where `other` has None."""
    return value in ([], {}) and other.get(path, "") is None


def compare_csv(result: Comparison, old: Path, new: Path) -> None:
    """Compare every cell of two tables with the same columns."""
    rows = [list(csv.reader(path.read_text().splitlines())) for path in (old, new)]
    for number, pair in enumerate(zip(*rows, strict=True)):
        if pair[0] == pair[1]:
            result.equal += len(pair[0])
        else:
            result.differing.append(f"{new.name} line {number + 1}: {pair[0]} became {pair[1]}")


def compare_map(result: Comparison, old: Path, new: Path) -> None:
    """Compare the voxels and the affine of two probability maps."""
    images = [nib.load(path) for path in (old, new)]
    voxels = [np.asanyarray(image.dataobj) for image in images]
    same = (
        voxels[0].dtype == voxels[1].dtype
        and voxels[0].tobytes() == voxels[1].tobytes()
        and images[0].affine.tobytes() == images[1].affine.tobytes()
    )
    if same:
        result.equal += voxels[0].size
    else:
        result.differing.append(f"{new.name}: voxels or affine differ")


def compare_weights(result: Comparison, old: Path, new: Path) -> None:
    """Compare the tensors of two safetensors files, by name where both have the name."""
    before, after = load_file(old), load_file(new)
    if old.read_bytes() == new.read_bytes():
        result.equal += sum(tensor.size for tensor in before.values())
        return
    if before.keys() != after.keys():
        # Parameters were renamed: the tensors must be the same in the same order.
        print(f"{new.name}: names of parameters differ")
    for (old_name, tensor), (name, other) in zip(
        sorted(before.items()), sorted(after.items()), strict=True
    ):
        if tensor.shape == other.shape and tensor.tobytes() == other.tobytes():
            result.equal += tensor.size
        else:
            result.differing.append(f"{new.name}: tensor {old_name}, now {name}, differs")


def compare_runs(old: Path, new: Path) -> Comparison:
    """Compare two demo folders."""
    result = Comparison()
    evaluation = Path("evaluation")

    def pair(path: Path, compare: Callable[[Path, Path], None]) -> None:
        if (new / path).exists():
            compare(old / path, new / path)
        else:
            result.differing.append(f"{path}: missing")

    pair(
        evaluation / "metrics.json",
        lambda a, b: compare_json(result, a, b, EVALUATION, METRIC_NAMES),
    )
    pair(evaluation / "cases.csv", lambda a, b: compare_csv(result, a, b))
    forecasts = sorted(path.relative_to(old) for path in (old / "forecasts").rglob("sub-*_*"))
    for path in forecasts:
        if path.name.endswith("_forecast.json"):
            pair(path, lambda a, b: compare_json(result, a, b, FORECAST, {}))
        elif path.name.endswith("_probseg.json"):
            pair(path, lambda a, b: compare_json(result, a, b, SIDECAR, {}))
        elif path.name.endswith(".nii.gz"):
            pair(path, lambda a, b: compare_map(result, a, b))
    for name in WEIGHTS:
        pair(Path("bundle") / name, lambda a, b: compare_weights(result, a, b))
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Compare two demo folders and print what differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path, help="the demo folder of commit b787f94")
    parser.add_argument("new", type=Path, help="the demo folder to compare")
    args = parser.parse_args(argv)
    result = compare_runs(args.old, args.new)
    for title, lines in (("WORDING", result.reworded), ("DIFFERS", result.differing)):
        for line in lines:
            print(f"{title} {line}")
    print(
        f"{result.equal} values are equal, {len(result.differing)} differ, "
        f"{len(result.reworded)} sentences are reworded, {result.skipped} digests and dates skipped"
    )
    return 1 if result.differing else 0


if __name__ == "__main__":
    sys.exit(main())

"""Markdown tables of a benchmark record."""

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

REDUCED = (
    "**A reduced check on a CPU, with networks of a few thousand weights. It shows that the script "
    "runs; no figure below says anything of the paper's networks or of a GPU.**"
)
HEAD = ("variant", "batch", "ms", "10 % to 90 %", "TFLOP/s", "of ceiling", "GiB", "first call, s")
TITLES = {
    "stage1": "A training step of stage 1",
    "forward": "A forward pass of the UNet",
    "stage2": "A training step of stage 2",
    "evaluation": "A guided network evaluation",
    "sampling": "Guided samples",
    "autotune": "A training step of stage 1, Triton's convolutions tried too",
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(record: Record) -> str:
    """Return the whole record as Markdown, without the sections that were not requested."""
    sections = [_opening(record)]
    for section, title in TITLES.items():
        if rows := [row for row in record["rows"] if row["section"] == section]:
            sections += [f"## {title}", table(HEAD, [_row(row) for row in rows])]
            sections += [_samples(row) for row in rows if "minutes_of_256_steps" in row]
    if record["convolutions"]:
        sections.append(_convolutions(record))
    if record["parts"]:
        sections.append(_parts(record))
    if record["kernels"]:
        sections.append(_kernels(record))
    failed = [row for row in record["rows"] if row["section"] not in TITLES and "failed" in row]
    sections += [f"{row['section']}, {row['name']}: {row['failed']}" for row in failed]
    return "\n\n".join(sections) + "\n"


def _opening(record: Record) -> str:
    device, ceiling, scale = record["device"], record["ceiling"], record["scale"]
    words = [
        "# The paper's networks on one device",
        f"{device['name']}, torch {device['torch']}, CUDA {device['cuda']}, {record['date']}. "
        f"Slabs of {scale['size']} x {scale['size']}, {scale['batch']} cases a step. Ceiling: "
        f"{ceiling['tflops_median']:.4g} TFLOP/s in bfloat16 matrix products "
        f"({min(ceiling['tflops']):.4g} to {max(ceiling['tflops']):.4g} over the run), "
        f"{ceiling['terabytes_median']:.3g} TB/s in copies.",
    ]
    return "\n\n".join([words[0], REDUCED, words[1]] if record["reduced"] else words)


def _row(row: Record) -> list[str]:
    if "failed" in row:
        return [row["name"], str(row["batch"]), row["failed"], *[""] * (len(HEAD) - 3)]
    return [
        row["name"],
        str(row["batch"]),
        f"{row['median']:.4g}",
        f"{row['low']:.4g} to {row['high']:.4g}",
        f"{row['tflops']:.3g}",
        f"{100 * row['share']:.1f} %" if "peak_gib" in row else "",
        f"{row['peak_gib']:.1f}" if "peak_gib" in row else "",
        f"{row['first_s']:.1f}",
    ]


def _samples(row: Record) -> str:
    return (
        f"{row['name']}: {row['batch']} guided samples in 256 steps would take "
        f"{row['minutes_of_256_steps']:.3g} minutes."
    )


def _convolutions(record: Record) -> str:
    rows = record["convolutions"]
    forward, backward = (
        sum(row["times"] * row[f"{way}_ms"] for row in rows) for way in ("forward", "backward")
    )
    unet = 2e-3 * record["gmac_per_case"]["measured"]["unet"] * record["scale"]["batch"]
    share = 3e3 * unet / (forward + backward) / record["ceiling"]["tflops_median"]
    longest = sorted(rows, key=lambda row: -row["times"] * (row["forward_ms"] + row["backward_ms"]))
    body = [
        [
            f"{row['in']} to {row['out']}, {row['kernel']} x {row['kernel']} / {row['stride']}",
            str(row["size"]),
            str(row["times"]),
            f"{row['forward_ms']:.3g}",
            f"{row['forward_tflops']:.3g}",
            f"{row['backward_ms']:.3g}",
            f"{row['backward_tflops']:.3g}",
        ]
        for row in longest[:20]
    ]
    head = ("convolution", "size", "times", "ms", "TFLOP/s", "backward, ms", "TFLOP/s")
    return (
        "## The convolutions alone\n\nbfloat16, channels_last, tuned: "
        f"{forward:.4g} ms forward and {backward:.4g} ms backward of a step, so with nothing else "
        f"it would reach {100 * share:.1f} % of the ceiling. The longest:\n\n" + table(head, body)
    )


def _parts(record: Record) -> str:
    speed = record["ceiling"]["terabytes_median"]
    body = [
        [
            row["part"] + (f" ({row['backend']})" if "backend" in row else ""),
            f"{row['ms']:.3g}",
            f"{row['low']:.3g} to {row['high']:.3g}",
            f"{row['ms'] * speed * 1e9 / row['bytes']:.1f}" if "bytes" in row else "",
        ]
        for row in record["parts"]
    ]
    head = ("part", "ms", "10 % to 90 %", "as passes over its tensor at the copy's speed")
    return "## Parts alone\n\n" + table(head, body)


def _kernels(record: Record) -> str:
    body = [
        [f"`{row['kernel'][:90]}`", str(row["calls"]), f"{row['ms']:.3g}"]
        for row in record["kernels"]
    ]
    return "## Kernels of a step of stage 1, best variant\n\n" + table(
        ("kernel", "calls", "ms"), body
    )

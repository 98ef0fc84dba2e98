"""Read and write folders of safetensors and JSON files, with the SHA-256 of each file."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from storage.digest import sha256_file

Weights = dict[str, Tensor]


def digests_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of each named file of a folder, by file name."""
    return {name: sha256_file(folder / name) for name in names}


def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds an infinity or NaN, or None."""
    if not tensors:
        return None
    # One number reaches the CPU, and not one a tensor: each would wait for the GPU.
    finite = torch.stack([tensor.detach().isfinite().all() for tensor in tensors.values()])
    if bool(finite.all()):
        return None
    return next(name for name, one in zip(tensors, finite.tolist(), strict=True) if not one)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as a safetensors file."""
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)


def read_tensors(path: Path, prefix: str = "") -> Weights:
    """Read the tensors whose names begin with `prefix`, onto the CPU; no other is read.

    The returned names lack the prefix.
    """
    with safe_open(path, framework="pt") as file:
        return {
            name.removeprefix(prefix): file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118, the file is no mapping
            if name.startswith(prefix)
        }

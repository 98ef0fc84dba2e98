"""Folders of safetensors and JSON with the sha256 of each file, whole or not at all."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from storage.digest import sha256_file


def digests_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The sha256 of the named files of a folder."""
    return {name: sha256_file(folder / name) for name in names}


def first_corrupt_file(folder: Path, digests: Mapping[str, str]) -> str | None:
    """The first of the files that is missing or has another sha256 than recorded, if any."""
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != digest:
            return name
    return None


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Named tensors as safetensors."""
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)


def read_tensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors whose name begins with `prefix`, by the rest of their name, on the CPU."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in load_file(path).items()
        if name.startswith(prefix)
    }


def write_json(path: Path, content: Any) -> None:
    """Indented JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text())


Weights = dict[str, Tensor]

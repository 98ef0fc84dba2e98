"""Bundles with several members hold the weights of each, all of them verified."""

import json
from pathlib import Path

import pytest
import torch

from lesioncast.bundle.bundle import load_bundle, load_bundle_prior
from lesioncast.bundle.description import MANIFEST, describe_bundle
from lesioncast.errors import BundleError
from tests.support.forecast import write_bundle, write_combined_bundle

SEEDS = (0, 1, 2)


@pytest.fixture
def combined(tmp_path: Path) -> Path:
    """Write a bundle of three members, made of one with two and one with one."""
    for seed in SEEDS:
        write_bundle(tmp_path / f"seed{seed}", lesion_loads=(1, 4), seed=seed)
    first, second, third = (tmp_path / f"seed{seed}" for seed in SEEDS)
    write_combined_bundle(tmp_path / "two", first, second)
    write_combined_bundle(tmp_path / "three", tmp_path / "two", third)
    return tmp_path / "three"


def test_each_member_has_the_weights_of_its_bundle(combined: Path) -> None:
    bundle, prior = load_bundle(combined), load_bundle_prior(combined)
    assert bundle.member_count == describe_bundle(combined).member_count == len(SEEDS)
    for seed, member, one in zip(SEEDS, bundle.members, prior.priors, strict=True):
        parent = load_bundle(combined.parent / f"seed{seed}").model
        for ours, theirs in (
            (member.model.unet, parent.unet),
            (member.model.control, parent.control),
            (one, parent.control.lesion_load_prior),
        ):
            for name, weight in theirs.state_dict().items():
                assert torch.equal(ours.state_dict()[name], weight), name
    card = (combined / "README.md").read_text()
    assert "- Members: 3, trained with different seeds" in card


@pytest.mark.parametrize("name", ["unet", "controlnet"])
def test_an_altered_file_of_a_member_is_named(combined: Path, name: str) -> None:
    file = combined / "member-3" / f"{name}.safetensors"
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match=rf"three/member-3/{name}.safetensors: expected the file"):
        load_bundle(combined)
    if name == "controlnet":
        with pytest.raises(BundleError, match=r"member-3/controlnet.safetensors"):
            load_bundle_prior(combined)
    assert describe_bundle(combined).member_count == len(SEEDS)


def test_a_manifest_without_one_file_of_a_member_is_refused(combined: Path) -> None:
    manifest = combined / MANIFEST
    record = json.loads(manifest.read_text())
    del record["sha256"]["member-2/unet.safetensors"]
    manifest.write_text(json.dumps(record))
    with pytest.raises(BundleError, match="expected the same weights of each member"):
        describe_bundle(combined)


def test_networks_of_one_member_are_not_taken_for_all(combined: Path) -> None:
    with pytest.raises(BundleError, match="expected a bundle with one member, got 3"):
        _ = load_bundle(combined).model

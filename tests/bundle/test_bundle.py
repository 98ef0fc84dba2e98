"""Bundles are complete, verified when loaded, and sufficient to sample masks."""

import json
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch

from lesioncast.bundle import bundle as bundle_module
from lesioncast.bundle.bundle import load_bundle, save_bundle
from lesioncast.bundle.config import BundleConfig
from lesioncast.bundle.description import bundle_digest
from lesioncast.bundle.io import Weights, read_tensors
from lesioncast.bundle.model_card import model_card
from lesioncast.diffusion.controlnet import ControlNet
from lesioncast.diffusion.model import LesionDiffusion
from lesioncast.diffusion.settings.process import ObjectiveConfig, SamplerConfig
from lesioncast.diffusion.unet import UNet
from lesioncast.errors import BundleError
from storage import StoreSettings, atomic
from tests.storage.test_atomic import is_killed_at
from tests.support.training import MODEL as TINY
from tests.support.training import SLAB

# Without the correction for the lesion weight, half of all voxels are lesions.
MODEL = replace(TINY, objective=ObjectiveConfig(lesion_weight=1))
SAMPLER = SamplerConfig(solver="dpmsolver++", num_steps=3)
STORE = StoreSettings(SLAB, (3.0, 1.5, 1.5), resample=False)
CONFIG = BundleConfig(MODEL, STORE, SAMPLER, simulated=True, brain_mask_share=0.5)
METRICS = {
    "data": "8 training cases of a simulated trial.",
    "stages": {name: {"step": 6, "loss": 0.5} for name in ("pretrain", "finetune")},
}


def write_random_bundle(path: Path, seed: int = 0) -> tuple[LesionDiffusion, str]:
    """Save networks of random weights to `path`; return the model and the bundle's digest."""
    torch.manual_seed(seed)
    unet = UNet(MODEL.unet)
    control = ControlNet.from_unet(MODEL.control, unet)
    for parameter in (*unet.parameters(), *control.parameters()):
        torch.nn.init.normal_(parameter, std=0.1)
    states = {"unet": unet.state_dict(), "control": control.state_dict()}
    digest = save_bundle(path, CONFIG, metrics=METRICS, **states)
    return LesionDiffusion(unet, control, MODEL), digest


def test_loaded_bundle_samples_the_same_masks_as_the_saved_networks(tmp_path: Path) -> None:
    model, digest = write_random_bundle(tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.digest == digest == bundle_digest(tmp_path / "bundle")
    assert bundle.config == CONFIG
    condition = torch.randn(2, 7, *SLAB, generator=torch.Generator().manual_seed(1))
    expected, loaded = (
        networks.sample_masks(condition, torch.tensor([0, 1]), [5, 6], SAMPLER)
        for networks in (model, bundle.model)
    )
    assert torch.equal(expected, loaded)
    assert 0 < int(expected.sum()) < expected.numel()


def test_a_bundle_with_a_weight_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    _, digest = write_random_bundle(tmp_path / "bundle")
    control = ControlNet(MODEL.control, MODEL.unet).state_dict()
    control["zero_middle.bias"][0] = torch.nan
    with pytest.raises(BundleError, match=r"controlnet.safetensors: .* NaN in zero_middle.bias"):
        save_bundle(
            tmp_path / "bundle",
            CONFIG,
            unet=UNet(MODEL.unet).state_dict(),
            control=control,
            metrics=METRICS,
        )
    assert load_bundle(tmp_path / "bundle").digest == digest


def test_equal_content_has_an_equal_digest(tmp_path: Path) -> None:
    digests = [
        write_random_bundle(tmp_path / name, seed)[1]
        for name, seed in [("a", 0), ("b", 0), ("c", 1)]
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("name", ["unet.safetensors", "config.json", "metrics.json", "README.md"])
def test_load_names_an_altered_file(tmp_path: Path, name: str) -> None:
    write_random_bundle(tmp_path / "bundle")
    file = tmp_path / "bundle" / name
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match=rf"bundle/{name}: expected the file that"):
        load_bundle(tmp_path / "bundle")


def test_load_names_a_missing_file(tmp_path: Path) -> None:
    write_random_bundle(tmp_path / "bundle")
    (tmp_path / "bundle" / "controlnet.safetensors").unlink()
    with pytest.raises(BundleError, match=r"controlnet.safetensors: expected the file"):
        load_bundle(tmp_path / "bundle")


def test_load_refuses_a_folder_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"expected a bundle with manifest.json, got none"):
        load_bundle(tmp_path)


def test_load_refuses_another_schema_and_says_how_to_make_the_bundle_again(tmp_path: Path) -> None:
    write_random_bundle(tmp_path / "bundle")
    manifest = tmp_path / "bundle" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema": 99}))
    with pytest.raises(BundleError, match="expected schema 8 .* got schema 99 .* to make it again"):
        load_bundle(tmp_path / "bundle")


def test_save_replaces_an_older_bundle_and_nothing_else(tmp_path: Path) -> None:
    write_random_bundle(tmp_path / "bundle")
    _, digest = write_random_bundle(tmp_path / "bundle", seed=1)
    assert load_bundle(tmp_path / "bundle").digest == digest
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    thesis = tmp_path / "thesis" / "chapter1.md"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    with pytest.raises(BundleError, match="got something else"):
        write_random_bundle(thesis.parent)
    assert thesis.exists()


def test_a_bundle_loads_wherever_its_replacement_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on NFS, which needs two renames; tests/storage/test_atomic.py covers the exchange.
    monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    path, found = tmp_path / "bundle", set()
    networks = {
        "unet": UNet(MODEL.unet).state_dict(),
        "control": ControlNet(MODEL.control, MODEL.unet).state_dict(),
    }

    def write(data: str) -> str:
        return save_bundle(path, CONFIG, metrics={**METRICS, "data": data}, **networks)

    versions = {write("new"), write("old")}
    operation = 0
    while is_killed_at(operation, lambda: write("new")):
        found.add(load_bundle(path).digest)
        write("old")
        operation += 1
    assert found == versions


@pytest.mark.parametrize("replaced_before", ["unet.safetensors", "controlnet.safetensors"])
def test_a_bundle_that_is_replaced_while_it_is_loaded_is_never_a_mixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced_before: str
) -> None:
    path = tmp_path / "bundle"
    write_random_bundle(path)
    new: list[str] = []

    def read_late(file: Path, prefix: str = "") -> Weights:
        if file.name == replaced_before and not new:
            new.append(write_random_bundle(path, seed=1)[1])
        return read_tensors(file, prefix)

    monkeypatch.setattr(bundle_module, "read_tensors", read_late)
    loaded = load_bundle(path)
    assert [loaded.digest] == new
    stored = read_tensors(path / "unet.safetensors")
    for name, weight in loaded.model.unet.state_dict().items():
        assert torch.equal(weight, stored[name]), name


def test_a_bundle_that_is_replaced_all_the_time_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seeds = tmp_path / "bundle", count(1)
    write_random_bundle(path)

    def read_late(file: Path, prefix: str = "") -> Weights:
        write_random_bundle(path, seed=next(seeds))
        return read_tensors(file, prefix)

    monkeypatch.setattr(bundle_module, "read_tensors", read_late)
    with pytest.raises(BundleError, match="expected one bundle, got another one at each of 3"):
        load_bundle(path)


def test_model_card_states_intended_use_data_arms_and_lesion_load(tmp_path: Path) -> None:
    write_random_bundle(tmp_path / "bundle")
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "Not a medical device" in card
    assert METRICS["data"] in card
    assert "placebo, avonex" in card
    assert "Lesion load" not in card
    assert "(NET2) at w096 (day 672) since w048 (day 336)" in card
    with_lesion_load = replace(MODEL, unet=replace(MODEL.unet, lesion_load_thresholds=(1, 20)))
    card = model_card(replace(CONFIG, model=with_lesion_load), METRICS)
    assert "(none, or from 6.75, 135 mm3) is sampled\n  first" in card
    assert "Lesions in FLAIR" not in card
    control = replace(MODEL.control, flair_reader_spacing=STORE.spacing)
    card = model_card(replace(CONFIG, model=replace(with_lesion_load, control=control)), METRICS)
    assert "Lesions in FLAIR" in card

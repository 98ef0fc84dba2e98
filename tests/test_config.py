"""Configuration is closed: what nobody knows is refused, and the message helps."""

from pathlib import Path

import pytest

from lesioncast.arms import PAPER_ARM_NAMES
from lesioncast.cluster.connection import source_tree
from lesioncast.config import load_config
from lesioncast.diffusion.controlnet import ControlConfig
from lesioncast.diffusion.unet import UNetConfig
from lesioncast.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "jobs" / "configs").glob("*.yaml"))
DEMO = ROOT / "jobs" / "configs" / "demo.yaml"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads_and_is_named_as_its_file(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    assert config.model.arms == PAPER_ARM_NAMES
    assert config.store.slab[0] == config.unet.slices


def test_the_paper_configuration_has_the_papers_network_on_its_four_cards() -> None:
    config = load_config(ROOT / "jobs" / "configs" / "paper.yaml")
    assert config.unet == UNetConfig()
    assert (config.unet.widths, config.unet.attention_stages) == (
        (128, 256, 512, 512, 1024, 1024),
        (4, 5),
    )
    assert config.control == ControlConfig(hint_widths=(32, 96, 96, 256))
    for stage in (config.pretrain, config.finetune):
        assert (stage.workers, stage.accelerator_type) == (4, "A100")


def test_an_unknown_key_is_refused_naming_its_neighbours() -> None:
    with pytest.raises(ConfigError, match=r"unknown key pretrain\.step; nearest: steps"):
        load_config(DEMO, ["pretrain.step=5"])


def test_a_value_of_the_wrong_kind_names_its_key() -> None:
    with pytest.raises(ConfigError, match=r"pretrain\.steps.*'many'"):
        load_config(DEMO, ["pretrain.steps=many"])


def test_an_override_replaces_one_value() -> None:
    config = load_config(DEMO, ["pretrain.steps=7", "store.split_fractions=[0.5, 0.25, 0.25]"])
    assert config.pretrain.steps == 7
    assert config.store.split_fractions == (0.5, 0.25, 0.25)
    assert config.finetune == load_config(DEMO).finetune


@pytest.mark.parametrize("override", ["pretrain.steps", "name.first=x"])
def test_an_override_that_makes_no_sense_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load_config(DEMO, [override])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*absent\.yaml"):
        load_config(tmp_path / "absent.yaml")


def test_arms_and_the_networks_table_must_agree() -> None:
    with pytest.raises(ValueError, match="unet.arms is 6, but 2 arms are named: placebo, novel"):
        _ = load_config(DEMO, ["arms=[placebo, novel]"]).model


def test_files_go_below_the_root_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LESIONCAST_ROOT", str(tmp_path))
    assert load_config(DEMO).paths.store == tmp_path / "demo" / "store.zarr"


def test_all_packages_come_from_one_tree() -> None:
    assert source_tree() == ROOT

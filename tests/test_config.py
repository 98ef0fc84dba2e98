"""The configuration is closed: unknown and old keys are errors whose messages help."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import yaml

from lesioncast.arms import PAPER_ARM_NAMES
from lesioncast.cluster.connection import source_tree
from lesioncast.config import REMOVED_KEYS, load_config
from lesioncast.diffusion.settings.networks import ControlConfig, UNetConfig
from lesioncast.errors import ConfigError
from lesioncast.simulation.bids import subject_name
from lesioncast.simulation.disease import draw_patient
from storage.store.split import assign_splits

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "jobs" / "configs").glob("*.yaml"))
DEMO = ROOT / "jobs" / "configs" / "demo.yaml"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads_and_has_the_name_of_its_file(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    assert config.model.arms == PAPER_ARM_NAMES
    assert config.store.slab[0] == config.unet.slices


def test_the_paper_configuration_has_the_network_and_the_four_gpus_of_the_paper() -> None:
    config = load_config(ROOT / "jobs" / "configs" / "paper.yaml")
    assert config.unet == UNetConfig()
    assert (config.unet.widths, config.unet.attention_stages) == (
        (128, 256, 512, 512, 1024, 1024),
        (4, 5),
    )
    assert config.control == ControlConfig(hint_widths=(32, 96, 96, 256))
    for stage in (config.pretrain, config.finetune):
        assert (stage.workers, stage.accelerator_type) == (4, "A100")


def test_an_unknown_key_is_rejected_naming_the_nearest_keys() -> None:
    with pytest.raises(ConfigError, match=r"unknown key pretrain\.step; nearest: steps"):
        load_config(DEMO, ["pretrain.step=5"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 1\nname: x\nseed: 2", "the key seed a second time (line 3, column 1)"),
        ("store:\n  slab: [1, 2, 3]\n  slab: [4, 5, 6]", "the key slab a second time (line 3,"),
        ("seed: 1_2", "the number 1_2; write a plain decimal (line 1, column 7)"),
        ("seed: 010", "the number 010; write a plain decimal"),
        ("seed: 1:30", "the number 1:30; write a plain decimal"),
        ("store: {brain_height: 0.5_5}", "the number 0.5_5; write a plain decimal"),
        ("seed: [", "expected YAML, got"),
        ("seed: 2030-02-31", "expected YAML, got"),
        ("- 1", "expected keys and their values, got list"),
    ],
)
def test_ambiguous_yaml_is_rejected_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override", ["pretrain.steps=[", "pretrain={steps: 1, steps: 2}", "seed=1_2", "name='"]
)
def test_override_with_invalid_yaml_is_named(override: str) -> None:
    with pytest.raises(ConfigError, match=rf"--set {re.escape(override)}: expected YAML, got"):
        load_config(DEMO, [override])


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-be"])
def test_configuration_in_another_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_bytes("name: d\u00e9mo".encode(encoding))
    with pytest.raises(
        ConfigError, match=r"odd\.yaml: expected UTF-8 text, got .*; save it as UTF-8"
    ):
        load_config(path)


def test_configuration_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "demo.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + DEMO.read_bytes().replace(b"\n", b"\r\n"))
    assert load_config(path) == load_config(DEMO)


@pytest.mark.parametrize(("old", "new"), [*REMOVED_KEYS.keys.items()])
def test_an_old_key_is_rejected_naming_the_new_one(
    old: str, new: str | None, tmp_path: Path
) -> None:
    advice = "remove it" if new is None else f"write {new} in its place"
    message = re.escape(f"{old} is an old key; {advice}")
    with pytest.raises(ConfigError, match=f"--set {re.escape(old)}=1: {message}"):
        load_config(DEMO, [f"{old}=1"])
    section, _, key = old.partition(".")
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump({section: {key: 1} if key else {"subjects": 1}}))
    with pytest.raises(ConfigError, match=rf"old\.yaml: {message}"):
        load_config(path)


@pytest.mark.parametrize(("key", "old", "new"), [(*k, v) for k, v in REMOVED_KEYS.values.items()])
def test_an_old_value_is_rejected_naming_the_new_one(key: str, old: str, new: str) -> None:
    message = re.escape(f"{key}: {old} is an old name; write {new} in its place")
    with pytest.raises(ConfigError, match=message):
        load_config(DEMO, [f"{key}={old}"])


def test_a_key_below_an_old_section_names_the_new_section() -> None:
    with pytest.raises(ConfigError, match="cohort is an old key; write simulation in its place"):
        load_config(DEMO, ["cohort.subjects=4"])


def test_lesion_load_classes_are_volumes_whatever_the_voxel_size() -> None:
    volumes = "lesion_load_mm3=[0, 270, 675]"
    assert load_config(DEMO, [volumes]).model.unet.lesion_load_thresholds == (1, 10, 25)
    finer = load_config(DEMO, [volumes, "store.spacing=[3.0, 1.0, 1.0]"])
    assert finer.model.unet.lesion_load_thresholds == (1, 90, 225)
    tenths = load_config(DEMO, ["lesion_load_mm3=[0, 0.3]", "store.spacing=[0.1, 1.0, 1.0]"])
    assert tenths.model.unet.lesion_load_thresholds == (1, 3)


@pytest.mark.parametrize("volumes", ["[270]", "[0, 27]", "[0, 540, 270]", "[0, 269, 270]"])
def test_lesion_load_volumes_rise_from_zero_by_a_voxel(volumes: str) -> None:
    with pytest.raises(ConfigError, match="lesion_load_mm3: expected volumes that rise from 0 by"):
        load_config(DEMO, [f"lesion_load_mm3={volumes}"])


def test_priors_switch_the_lesion_load_and_the_base_map() -> None:
    """Presets keep what they have; any of them can be switched."""

    def shape(path: Path, *overrides: str) -> tuple[int, bool]:
        unet = load_config(path, overrides).model.unet
        return unet.lesion_load_classes, unet.base_map

    assert shape(DEMO) == shape(DEMO, "priors=both") == (7, True)
    assert shape(DEMO, "priors=load") == (7, False)
    assert shape(DEMO, "priors=none") == (1, False)
    paper, log_odds = DEMO.with_name("paper.yaml"), "objective.prediction=log_odds"
    assert shape(paper) == (1, False)
    assert shape(paper, "priors=load") == (7, False)
    assert shape(paper, "priors=both", log_odds) == (7, True)
    assert shape(DEMO.with_name("small.yaml"), "priors=both") == (7, True)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["priors=both", "objective={}"], r"objective\.prediction: expected log_odds"),
        (["unet.base_map=true"], r"unet\.base_map is an old key; write priors in its place"),
        (["priors=all"], "priors"),
    ],
)
def test_priors_that_do_not_fit_are_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(DEMO, overrides)


def test_new_names_of_old_keys_exist() -> None:
    keys = {key for key, _ in dotted_fields(load_config(DEMO))}
    assert {new for new in REMOVED_KEYS.keys.values() if new is not None} <= keys
    # The configuration gives volumes and priors, from which the networks' own fields follow.
    derived = {
        "unet.lesion_load_thresholds", "unet.base_map", "control.flair_reader_spacing",
    }  # fmt: skip
    assert not REMOVED_KEYS.keys.keys() & (keys - derived)
    for (key, old), new in REMOVED_KEYS.values.items():
        assert getattr(load_config(DEMO, [f"{key}={new}"]), key.split(".")[0])
        assert old != new


def dotted_fields(config: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    for field in fields(config):
        value = getattr(config, field.name)
        yield f"{prefix}{field.name}", value
        if is_dataclass(value):
            yield from dotted_fields(value, f"{prefix}{field.name}.")


def test_a_value_of_the_wrong_kind_names_its_key() -> None:
    with pytest.raises(ConfigError, match=r"pretrain\.steps.*'many'"):
        load_config(DEMO, ["pretrain.steps=many"])


def test_an_override_replaces_one_value() -> None:
    config = load_config(DEMO, ["pretrain.steps=7", "store.split_fractions=[0.5, 0.25, 0.25]"])
    assert config.pretrain.steps == 7
    assert config.store.split_fractions == (0.5, 0.25, 0.25)
    assert config.finetune == load_config(DEMO).finetune


@pytest.mark.parametrize("override", ["pretrain.steps", "name.first=x"])
def test_a_malformed_override_is_rejected(override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load_config(DEMO, [override])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*absent\.yaml"):
        load_config(tmp_path / "absent.yaml")


def test_the_number_of_arms_must_be_that_of_the_network() -> None:
    with pytest.raises(ValueError, match=r"unet\.arms: expected 2, .*\(placebo, novel\), got 6"):
        _ = load_config(DEMO, ["arms=[placebo, novel]"]).model


def test_jobs_write_below_the_folder_in_the_environment_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LESIONCAST_ROOT", str(tmp_path))
    assert load_config(DEMO).paths.store == tmp_path / "demo" / "store.zarr"
    monkeypatch.setenv("LESIONCAST_ROOT", "s3://bucket/lesioncast")
    with pytest.raises(ConfigError, match="LESIONCAST_ROOT: expected a local folder, got the URL"):
        _ = load_config(DEMO).paths


def test_all_packages_come_from_one_tree() -> None:
    assert source_tree() == ROOT


def test_the_demo_has_enough_validation_cases_to_choose_and_calibrate() -> None:
    """Splits are assigned before any image exists, by arm and by name."""
    config = load_config(DEMO)
    arms = {
        subject_name(index): draw_patient(config.simulation, index).arm
        for index in range(config.simulation.subjects)
    }
    splits = assign_splits(arms, config.store.split_fractions, seed=config.seed)
    assert Counter(splits.values()) == {"train": 1722, "val": 318, "test": 360}


def test_the_reader_of_flair_works_on_the_voxels_of_the_store_and_needs_lesion_loads() -> None:
    off, on = (load_config(DEMO, [f"flair_reader={value}"]) for value in ("false", "true"))
    assert off.model.control.flair_reader_spacing is None
    assert on.model.control.flair_reader_spacing == on.store.spacing
    without = load_config(DEMO, ["flair_reader=true", "priors=none"])
    assert without.model.control.flair_reader_spacing is None
    with pytest.raises(ConfigError, match="flair_reader: expected lesion loads beside it"):
        load_config(DEMO, ["flair_reader=true", "priors=null", "lesion_load_mm3=[]"])
    with pytest.raises(ConfigError, match="flair_reader_spacing is an old key; write flair_reader"):
        load_config(DEMO, ["control.flair_reader_spacing=[3, 3, 3]"])
    with pytest.raises(ConfigError, match="expected a channel of FLAIR for the prior to read"):
        load_config(DEMO, ["flair_reader=true", "control.condition=[w000/t2]"])

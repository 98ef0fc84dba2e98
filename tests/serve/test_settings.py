"""Settings of the service: each is explained, and keys of earlier versions name their successor."""

from pathlib import Path

import pytest

from serve.settings import REMOVED_SETTINGS, ServiceSettings


def settings(**values: object) -> ServiceSettings:
    return ServiceSettings(bundle=Path("b"), store=Path("s"), demo=True, **values)  # type: ignore[arg-type]


def test_every_setting_is_explained() -> None:
    for name, field in ServiceSettings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


@pytest.mark.parametrize(("old", "new"), REMOVED_SETTINGS.keys.items())
def test_a_removed_setting_names_its_successor_or_says_why_it_has_none(
    old: str, new: str | None
) -> None:
    if new is None:
        advice = f"remove it: {REMOVED_SETTINGS.reasons[old]}"
    else:
        assert new in ServiceSettings.model_fields
        advice = f"write {new} in its place"
    with pytest.raises(ValueError, match=f"{old} is an old key; {advice}"):
        settings(**{old: 1})


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="sampler"):
        settings(sampler=1)


def test_keys_and_demo_mode_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="expected either keys=FILE or demo=true"):
        settings(keys=Path("keys.txt"))
    with pytest.raises(ValueError, match="expected either keys=FILE or demo=true"):
        ServiceSettings(bundle=Path("b"), store=Path("s"))

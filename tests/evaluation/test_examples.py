"""Pictures and words of the example patients in the evaluation report."""

import io

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.colors import Normalize, to_rgb
from PIL import Image

from lesioncast.evaluation.reporting.examples import ChosenCase, example_case
from lesioncast.evaluation.reporting.html import ExampleCase
from lesioncast.evaluation.reporting.single_samples import SAMPLED, single_samples
from lesioncast.forecasting.ensemble import ExpectedOutcomes
from lesioncast.forecasting.output.display import View
from lesioncast.forecasting.output.figure import OBSERVED
from lesioncast.forecasting.sampling import (
    EnsembleRequest,
    ModelInput,
    RequestSamples,
    SampleBatch,
)
from lesioncast.markdown import format_probability
from storage import Store
from tests.support.forecast import write_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("trial")
    return write_store(folder / "store.zarr", folder / "bids", test=2)


def example(
    store: Store, *, share: float = 0.0, right: bool = False, p_active: float = 0.5
) -> ExampleCase:
    """Return a case that was not active, forecast with this share of samples in one block."""
    case = store.cases[0]
    masks = np.zeros((10, *store.spec.slab), bool)
    middle = store.spec.slab[2] // 2
    columns = slice(middle + 2, middle + 5) if right else slice(middle - 5, middle - 2)
    masks[: round(10 * share), 2, 8:12, columns] = True
    batch = SampleBatch.from_masks(masks, store.spec.spacing)
    samples = RequestSamples(
        EnsembleRequest(case.index, case.arm_index),
        seeds=tuple(range(10)),
        masks=masks,
        lesions=batch.lesions,
        all_expected={ModelInput(case.index): (ExpectedOutcomes(p_active, 1.0, 0.5),) * 3},
    )
    return example_case(
        store,
        case,
        samples,
        chosen=ChosenCase(0, "why", p_active),
        scale=Normalize(0, 0.9),
        opening=False,
    )


def forecast_picture(shown: ExampleCase) -> npt.NDArray[np.int64]:
    """Return the right half of the picture [row, column, colour], which shows the forecast."""
    pixels = np.asarray(Image.open(io.BytesIO(shown.pictures[0].png)).convert("RGB")).astype(int)
    return pixels[:, pixels.shape[1] // 2 :]


def is_hot(pixels: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    return pixels[..., 0] - pixels[..., 2] > 60


def test_the_patients_right_is_on_the_left_of_an_example(store: Store) -> None:
    for right in (True, False):
        pixels = forecast_picture(example(store, share=0.9, right=right))
        columns = np.nonzero(is_hot(pixels))[1]
        assert bool(columns.mean() < pixels.shape[1] / 2) is right


def test_a_colour_means_one_share_in_all_examples(store: Store) -> None:
    """A share of 0.3 is darker than one of 0.9, although either is the highest of its patient."""
    few, many = (forecast_picture(example(store, share=share)) for share in (0.3, 0.9))
    place = is_hot(few)
    assert place.any()
    assert few[place, 1].mean() < many[place, 1].mean() - 50


def test_a_forecast_without_lesions_says_so(store: Store) -> None:
    assert "no sample has a lesion here" in example(store).pictures[0].caption


@pytest.mark.parametrize(
    ("value", "exact", "sampled"),
    [(0.997, ">99%", "100%"), (0.004, "<1%", "0%"), (0.99, "99%", "99%"), (0.5, "50%", "50%")],
)
def test_no_exact_forecast_is_shown_as_certain(
    store: Store, value: float, exact: str, sampled: str
) -> None:
    assert f"Forecast: {exact} probability" in example(store, p_active=value).words
    assert format_probability(value, exact=False) == sampled


def coloured(pixels: npt.NDArray[np.int64], colour: str) -> npt.NDArray[np.bool_]:
    """Return the pixels near a colour."""
    wanted = np.round(255 * np.array(to_rgb(colour)))
    return np.abs(pixels - wanted).max(axis=-1) < 60


def test_single_samples_stand_beside_the_outcome_with_sides_and_legend(store: Store) -> None:
    """Sub-02 has a lesion at outcome; two of its three samples have one, elsewhere."""
    masks = np.zeros((3, *store.spec.slab), bool)
    masks[:2, 2, 4:7, 10:13] = True
    arrays = store.read(1)
    view = View(
        flair=arrays.flair[1].astype(np.float32),
        probability={},
        observed=arrays.masks[2, 2].astype(bool),
        spacing=store.spec.spacing,
        heights=np.arange(5.0),
    )
    picture = single_samples(view, masks, 2, subject="sub-02")
    volume = 12 * np.prod(store.spec.spacing)
    assert f"observed new lesions ({4 * volume / 12:.0f} mm3" in picture.caption
    sampled = 9 * np.prod(store.spec.spacing)
    assert f"the first 3 samples, one by one ({sampled:.0f}, {sampled:.0f}, 0 mm3)" in (
        picture.caption
    )
    pixels = np.asarray(Image.open(io.BytesIO(picture.png)).convert("RGB")).astype(int)
    panels = np.array_split(pixels[: int(0.85 * len(pixels))], 4, axis=1)
    assert coloured(panels[0], OBSERVED).any()
    assert not coloured(panels[0], SAMPLED).any()
    assert [bool(coloured(panel, SAMPLED).any()) for panel in panels[1:]] == [True, True, False]
    # The patient's right is on the left: the columns of the sample are to the right of w = 8.
    columns = np.nonzero(coloured(panels[1], SAMPLED))[1]
    assert columns.mean() < panels[1].shape[1] / 2
    legend = pixels[int(0.9 * len(pixels)) :]
    assert coloured(legend, OBSERVED).any()
    assert coloured(legend, SAMPLED).any()

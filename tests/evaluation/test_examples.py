"""Pictures and words of the example patients in the evaluation report."""

import io

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.colors import Normalize
from PIL import Image

from lesioncast.evaluation.reporting.examples import example_case
from lesioncast.evaluation.reporting.html import ExampleCase
from lesioncast.forecasting.ensemble import Ensemble, ExpectedOutcomes
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
    probability = np.zeros(store.spec.slab, np.float32)
    middle = store.spec.slab[2] // 2
    columns = slice(middle + 2, middle + 5) if right else slice(middle - 5, middle - 2)
    probability[2, 8:12, columns] = share
    counts = np.ones(10, np.int64)
    ensemble = Ensemble(
        plain=counts,
        opened=counts,
        expected=ExpectedOutcomes(p_active, 1.0, 0.5),
        case=case.index,
        arm=case.arm_index,
        seeds=tuple(range(10)),
        volume=counts.astype(float),
        probability=probability,
    )
    return example_case(
        store, case, ensemble, p_active=p_active, rule="why", scale=Normalize(0, 0.9)
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

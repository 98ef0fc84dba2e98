"""Pictures of quality control: every slice of every session, in radiological convention."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from storage import CaseArrays
from storage.qc.slices import COLOURS, draw_slices, strip_size

SLAB = (5, 24, 20)
SESSIONS = ("m00", "m12", "m24")
NET2 = 2


def case() -> CaseArrays:
    """Return a grey case whose only bright voxel block and lesion are superior, anterior, right."""
    flair = np.full((3, *SLAB), -0.5, np.float16)
    flair[:, 4, 20:23, 16:19] = 1
    masks = np.zeros((3, 3, *SLAB), np.uint8)
    masks[1, NET2, 4, 20:23, 16:19] = 1
    return CaseArrays(flair, masks, np.zeros(SLAB, np.int16), np.ones((3, 4), bool))


def pixels(picture: bytes, *, mode: str) -> npt.NDArray[np.int64]:
    """Return a picture as [slice, row, session, column, ...]."""
    image = np.asarray(Image.open(io.BytesIO(picture)).convert(mode)).astype(int)
    rows, columns = image.shape[:2]
    return image.reshape(SLAB[0], rows // SLAB[0], 3, columns // 3, *image.shape[2:])


def test_a_lesion_on_the_patients_right_is_on_the_left_of_its_session_and_slice() -> None:
    pictures, dull = draw_slices(case(), SESSIONS), case()
    dull.flair[:] = -0.5
    flair = pixels(pictures.flair, mode="L")
    without = pixels(draw_slices(dull, SESSIONS).flair, mode="L")
    slices, rows, sessions, columns = np.nonzero(flair - without > 100)
    assert set(slices) == {0}, "the superior slice is the first"
    assert set(sessions) == {0, 1, 2}
    assert rows.max() < flair.shape[1] / 4
    assert columns.max() < flair.shape[3] / 4

    outlines = pixels(pictures.outlines, mode="RGBA")
    slices, rows, sessions, columns = np.nonzero(outlines[..., 3])
    assert (set(slices), set(sessions)) == ({0}, {1})
    assert rows.max() < outlines.shape[1] / 4
    assert columns.max() < outlines.shape[3] / 4
    colours = {tuple(colour) for colour in outlines[slices, rows, sessions, columns]}
    assert colours == {(*COLOURS["net2"], 255)}
    middle = outlines[0, rows.min() : rows.max(), 1, columns.min() : columns.max(), 3]
    assert middle[middle.shape[0] // 2, middle.shape[1] // 2] == 0, "the lesion shows"


def test_each_session_of_each_slice_has_a_letter_at_every_edge() -> None:
    def edges(arrays: CaseArrays) -> npt.NDArray[np.int64]:
        image = pixels(draw_slices(arrays, SESSIONS).flair, mode="L")
        return np.where(image > 150, image, 0)

    black = case()
    black.flair[:] = -1
    image = edges(black)
    height, width = image.shape[1], image.shape[3]
    middle = slice(height // 2 - 8, height // 2 + 8), slice(width // 2 - 8, width // 2 + 8)
    letters = {
        "R": image[:, middle[0], :, :14],
        "L": image[:, middle[0], :, -14:],
        "A": image[:, :14, :, middle[1]],
        "P": image[:, -14:, :, middle[1]],
    }
    for letter, part in letters.items():
        assert part.max(axis=(1, 3)).min() > 150, letter
    centre = image[:, 20:-20, :, 20:-20]
    assert centre.max() == 0
    tall = [np.ptp(np.nonzero(part[0, :, 0])[0]) for part in (letters["R"], letters["A"])]
    assert all(5 <= size <= 12 for size in tall)


def test_a_session_without_flair_is_grey_and_says_so() -> None:
    arrays = case()
    arrays.present[2, 0] = False
    arrays.flair[2] = 0
    image = pixels(draw_slices(arrays, SESSIONS).flair, mode="L")[1, :, 2]
    assert np.median(image) == 38
    height, width = image.shape
    note = image[height // 2 - 6 : height // 2 + 6, width // 2 - 20 : width // 2 + 20]
    assert note.max() > 150


def test_both_pictures_have_the_proportions_of_the_strips_of_the_page() -> None:
    pictures = draw_slices(case(), SESSIONS)
    height, width = strip_size(SLAB, len(SESSIONS))
    for picture in (pictures.flair, pictures.outlines):
        shown = Image.open(io.BytesIO(picture)).size
        assert shown[0] * height * SLAB[0] == shown[1] * width


def test_wide_slabs_are_drawn_voxel_by_voxel() -> None:
    flair = np.full((3, 2, 200, 190), -1, np.float16)
    masks = np.zeros((3, 3, 2, 200, 190), np.uint8)
    arrays = CaseArrays(flair, masks, np.zeros((2, 200, 190), np.int16), np.ones((3, 4), bool))
    pictures = draw_slices(arrays, SESSIONS)
    for picture in (pictures.flair, pictures.outlines):
        assert Image.open(io.BytesIO(picture)).size == (3 * 191, 2 * 201)

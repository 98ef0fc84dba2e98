"""The format of a view: a header as JSON, then its layers.

8 bytes         b"LCVIEW" and the format's version, 2 bytes little-endian
4 bytes         length of the header, little-endian
header          `ViewHeader` as JSON, padded with spaces to a multiple of 8 bytes
layers          one after the other, each padded with zeros to a multiple of 8 bytes
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lesioncast.forecasting.view.schemas import VIEW_SCHEMA, Layer, LayerKind, ViewHeader
from lesioncast.forecasting.view.volumes import (
    ViewGrid,
    Volume,
    encode_flair,
    encode_mask,
    encode_probability,
)
from lesioncast.imaging.channels import CHANNELS, MASKS, OUTCOME, SESSIONS
from storage import Case, CaseArrays, VisitSchedule

MAGIC = b"LCVIEW"
_ALIGNMENT = 8
_LESIONS: tuple[LayerKind, ...] = ("t2", "gad", "net2")
_DTYPES = {"flair": "uint8", "probability": "float16"}


@dataclass
class LayerWriter:
    """The body of a view, to which layers are added one by one."""

    grid: ViewGrid
    #: Labels of the sessions, as the layers name them.
    visits: VisitSchedule
    layers: list[Layer] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)

    def add(
        self, kind: LayerKind, volume: Volume, *, session: str | None = None, arm: str | None = None
    ) -> None:
        """Append a volume [s, h, w] of the box."""
        if kind == "flair":
            content = encode_flair(volume)
        elif kind == "probability":
            content = encode_probability(volume)
        else:
            content = encode_mask(volume)
        self.layers.append(
            Layer(
                kind=kind,
                session=session,
                arm=arm,
                dtype=_DTYPES.get(kind, "bits"),  # type: ignore[arg-type]
                offset=len(self.body),
                length=len(content),
            )
        )
        self.body += content + bytes(-len(content) % _ALIGNMENT)

    def add_case(self, case: Case, arrays: CaseArrays) -> None:
        """Append the images and lesions of every session that the case has, the latest first.

        FLAIR is drawn under the forecast, so that of the session to be forecast is left out.
        """
        for session in reversed(SESSIONS):
            k, label = SESSIONS.index(session), self.visits.label(session)
            if case.present[k, CHANNELS.index("flair")] and session != OUTCOME:
                # Black, not grey, where the file reaches beyond the slab.
                flair = arrays.flair[k].astype(np.float32) + 1
                self.add("flair", self.grid.from_slab(flair, order=1) - 1, session=label)
            for kind in _LESIONS:
                if case.present[k, CHANNELS.index(kind)]:
                    mask = self.grid.from_slab(arrays.masks[k, MASKS.index(kind)], order=0)
                    self.add(kind, mask, session=label)

    def add_probabilities(self, maps: Mapping[str, Volume]) -> None:
        """Append the probability map of each arm."""
        for arm, probability in maps.items():
            self.add("probability", probability, arm=arm)

    def add_truth(self, masks: Mapping[str, npt.NDArray[np.bool_]]) -> None:
        """Append the true lesions of a simulated patient under each arm, on the slab."""
        for arm, mask in masks.items():
            self.add("truth", self.grid.from_slab(mask, order=0), arm=arm)


def encode_view(header: ViewHeader, body: bytes) -> bytes:
    """Return header and layers as one message."""
    text = header.model_dump_json().encode()
    start = len(MAGIC) + 2 + 4
    text += b" " * (-(start + len(text)) % _ALIGNMENT)
    return MAGIC + struct.pack("<HI", VIEW_SCHEMA, len(text)) + text + body


def decode_view(content: bytes) -> tuple[ViewHeader, bytes]:
    """Return header and body of a view. Raises ValueError for another format."""
    start = len(MAGIC) + 6
    if content[: len(MAGIC)] != MAGIC:
        raise ValueError(f"expected a view that begins with {MAGIC!r}, got {content[:6]!r}")
    version, length = struct.unpack("<HI", content[len(MAGIC) : start])
    if version != VIEW_SCHEMA:
        raise ValueError(f"expected a view of version {VIEW_SCHEMA}, got {version}")
    header = ViewHeader.model_validate_json(content[start : start + length])
    return header, content[start + length :]

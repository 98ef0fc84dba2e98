"""Character sets of DICOM text: read any, and write what the source wrote."""

import copy
import re
from io import BytesIO

from pydicom import Dataset, dcmread
from pydicom.charset import python_encoding
from pydicom.valuerep import CUSTOMIZABLE_CHARSET_VR

UTF8 = "ISO_IR 192"
# Scanners write `ISO IR 100` and the like, which pydicom understands.
_MISSPELT = re.compile("ISO[-_ ](2022[-_ ])?IR[-_ ][0-9]+")


def character_sets(image: Dataset) -> list[str]:
    """Return the character sets of an image; the first one may be empty, which means ASCII.

    Raises ValueError for a name that DICOM does not define.
    """
    value = image.get("SpecificCharacterSet") or ""
    names = [value] if isinstance(value, str) else [str(name) for name in value]
    for name in names:
        if name not in python_encoding and not _MISSPELT.fullmatch(name):
            raise ValueError(f"SpecificCharacterSet: expected one that DICOM defines, got {name}")
    return names


def with_utf8_text(image: Dataset) -> Dataset:
    """Return a copy of an image whose text is declared as UTF-8, the only set that holds any text.

    highdicom rejects an empty first character set and misspelt ones.
    """
    character_sets(image)
    decoded = copy.deepcopy(image)
    decoded.decode()
    decoded.SpecificCharacterSet = UTF8
    return decoded


def encode_like(image: Dataset, source: Dataset) -> bytes:
    """Return `image`, whose text is UTF-8, as a file in the character sets of `source`.

    Archives compare the patient's name with what they have, and not every one reads UTF-8. If the
    sets of the source are not valid or do not hold all the text, the file is in UTF-8.
    """
    names = character_sets(source)
    valid = all(name in python_encoding for name in names)
    extended = len(names) == 1 or all(name.startswith("ISO 2022") for name in names if name)
    if valid and extended:
        text = _text(image)
        if names == [""]:
            del image.SpecificCharacterSet
        else:
            image.SpecificCharacterSet = names[0] if len(names) == 1 else names
        content = _saved(image)
        if _text(dcmread(BytesIO(content), stop_before_pixels=True)) == text:
            return content
    image.SpecificCharacterSet = UTF8
    return _saved(image)


def _saved(image: Dataset) -> bytes:
    content = BytesIO()
    image.save_as(content)
    return content.getvalue()


def _text(image: Dataset) -> list[str]:
    elements = (element for element in image.iterall() if element.VR in CUSTOMIZABLE_CHARSET_VR)
    return [str(element.value) for element in elements]

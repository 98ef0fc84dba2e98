"""Interpret one cell of a trial's table: a plain decimal number, a word or a missing value.

Python's `int` and `float` also accept `1_2`, digits of other scripts and `infinity`. In a table
these are words, for example the codes of two sites.
"""

import math
import re

from storage.layout import CovariateValue

MISSING = "n/a"
"""How this project writes a missing value."""

_MISSING_WORDS = frozenset(
    {
        "", "-", "--", "---", "\N{EN DASH}", "\N{EM DASH}", ".", "..", "?", "n/a", "#n/a", "n.a.",
        "na", "#na", "<na>", "nan", "null", "nil", "nd", "n.d.", "missing", "unknown", "unk",
        "not available", "not applicable", "not done", "not known",
    }
)  # fmt: skip
# What programs write for a missing value in this spelling only: "none" is also a word of trials,
# for example as an earlier treatment.
_MISSING_SPELLINGS = frozenset({"None", "NaT"})

# "007" is the code of a site or a patient, and not the number 7.
_PLAIN_NUMBER = re.compile(r"[+-]?(0|[1-9][0-9]*|(0|[1-9][0-9]*)?\.[0-9]+|[1-9][0-9]*\.|0\.)"
                           r"([eE][+-]?[0-9]+)?")  # fmt: skip
_WHOLE_NUMBER = re.compile("[+-]?[0-9]+")
# What a person may mean as a number: 34,5 or 1.234,5 or digits of another script.
_INTENDED_NUMBER = re.compile(r"[+\-\N{MINUS SIGN}]?\s*[\d.,'\u066b\u00a0 ]*\d")
# Codes such as 007 are words on purpose.
_CODE = re.compile("[0-9]+")


def is_missing(text: str) -> bool:
    """Return whether a cell says that its value is unknown."""
    text = text.strip()
    return text.lower() in _MISSING_WORDS or text in _MISSING_SPELLINGS


def parse_cell(text: str) -> CovariateValue:
    """Return a cell as a number if it is a plain decimal, as text otherwise, None if missing.

    A number beyond the range of floats counts as missing.
    """
    text = text.strip()
    if is_missing(text):
        return None
    if not _PLAIN_NUMBER.fullmatch(text):
        return text
    number = float(text)
    if not math.isfinite(number):
        return None
    return int(text) if _WHOLE_NUMBER.fullmatch(text) else number


def looks_like_number(word: str) -> bool:
    """Return whether a person may mean a number by a word that is no plain decimal."""
    return bool(_INTENDED_NUMBER.fullmatch(word)) and not _CODE.fullmatch(word)

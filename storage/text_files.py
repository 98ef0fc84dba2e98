"""Read text files that people write: UTF-8, with or without a byte order mark."""

import unicodedata
from pathlib import Path

_BYTE_ORDER_MARK = "\ufeff"


class TextEncodingError(ValueError):
    """A file is not UTF-8 text; the message is a sentence that names the file."""


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file without byte order marks.

    Editors of Windows write the mark at the start of a file. Files that are joined keep it at the
    start of a line. Raises TextEncodingError for another encoding, OSError for a missing file.
    """
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _wrong_encoding(path, f"the byte 0x{content[error.start]:02x}") from error
    if "\0" in text:  # UTF-16 without a byte order mark is valid UTF-8 with zero bytes
        raise _wrong_encoding(path, "zero bytes, as in UTF-16")
    return text.removeprefix(_BYTE_ORDER_MARK).replace(f"\n{_BYTE_ORDER_MARK}", "\n")


def _wrong_encoding(path: Path, got: str) -> TextEncodingError:
    return TextEncodingError(f"{path}: expected UTF-8 text, got {got}; save it as UTF-8.")


def composed(text: str) -> str:
    """Return text in Unicode's composed normal form.

    The same name may be stored with one character for a letter and its accent, or with two.
    """
    return unicodedata.normalize("NFC", text)


def is_utf8_name(name: str) -> bool:
    """Return whether a file name can be written as UTF-8.

    Python represents other bytes of a name by surrogates, which no text file can hold.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable_name(name: str) -> str:
    r"""Return a file name with the bytes that are not UTF-8 as escapes such as \xfc."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

"""File patterns of a trial: globs with the fields {subject} and {session}.

`scans/{subject}/{session}/*flair.nii*` finds files and yields the subject of each. `*` and `?` stay
within one folder, `**` matches any number of folders. {subject} matches the shortest possible name.
Where it occurs several times in a pattern, it has the same value each time. A `*` beside
{session} does not continue its number: with `{session}*` the session m1 does not match m12.
"""

import glob
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path, PurePosixPath

from storage.text_files import composed

FIELDS = ("subject", "session")
# Characters, or sets of characters in brackets, that are not ASCII.
_NOT_ASCII = re.compile(r"\[[^]/]*[^\x00-\x7f][^]/]*\]|[^\x00-\x7f]+")
_TOKEN = re.compile(r"(\{\w*\}|\*\*/|\*|\?|\[[^]/]+\])")


def check_pattern(pattern: str, *, session: bool) -> str | None:
    """Return what is wrong with a pattern, or None.

    `session` says whether the pattern must hold {session}.
    """
    fields = re.findall(r"\{(.*?)\}", pattern)
    if unknown := sorted(set(fields) - set(FIELDS)):
        return f"fields in ({', '.join(FIELDS)}), got {', '.join(unknown)} in {pattern!r}"
    needed = FIELDS if session else FIELDS[:1]
    if missing := [field for field in needed if field not in fields]:
        return f"{{{missing[0]}}} in the pattern, got {pattern!r}"
    path = PurePosixPath(pattern)
    if path.is_absolute() or ".." in path.parts:
        return f"a pattern below the trial's folder, got {pattern!r}"
    return None


def find_files(root: Path, pattern: str, *, session: str) -> Iterator[tuple[str, Path]]:
    """Yield subject and path of each file of a session that matches the pattern, by path."""
    glob_pattern = pattern.replace("{session}", glob.escape(session)).replace("{subject}", "*")
    # An accent may be stored as one character or two. The glob finds both, match_subject compares.
    glob_pattern = _NOT_ASCII.sub("*", composed(glob_pattern))
    # Path.glob takes twice as long as glob.glob.
    for path in sorted(glob.glob(glob_pattern, root_dir=root, recursive=True)):  # noqa: PTH207
        if (subject := match_subject(path, pattern, session=session)) is not None:
            yield subject, root / path


def find_folders(root: Path, pattern: str) -> Iterator[str]:
    """Yield each subject that has a folder of its own below `root`, even an empty one."""
    parts = PurePosixPath(pattern).parts
    depth = next(i for i, part in enumerate(parts) if "{subject}" in part) + 1
    if depth < len(parts) and "{session}" not in "/".join(parts[:depth]):
        for subject, path in find_files(root, "/".join(parts[:depth]), session=""):
            if path.is_dir():
                yield subject


def match_subject(path: str, pattern: str, *, session: str) -> str | None:
    """Return the subject of the file at `path` (relative, with /), None if it does not match.

    Accents may be composed or decomposed characters on either side.
    """
    matched = _expression(composed(pattern), composed(session)).fullmatch(composed(path))
    return matched["subject"] if matched else None


@lru_cache(maxsize=64)
def _expression(pattern: str, session: str) -> re.Pattern[str]:
    """Return the regular expression equivalent to a pattern, with a group for the subject."""
    tokens = [token for token in _TOKEN.split(pattern) if token]
    first_subject = tokens.index("{subject}")
    expressions = [
        r"(?P<subject>[^/]+?)" if position == first_subject else _translate(token, session)
        for position, token in enumerate(tokens)
    ]
    for position, (token, after) in enumerate(pairwise(tokens)):
        if (token, after) == ("{session}", "*") and session[-1:].isdigit():
            expressions[position] += r"(?!\d)"
        if (token, after) == ("*", "{session}") and session[:1].isdigit():
            expressions[position] += r"(?<!\d)"
    return re.compile("".join(expressions))


def _translate(token: str, session: str) -> str:
    """Return the regular expression of one token of a glob pattern."""
    translations = {
        "{subject}": "(?P=subject)",
        "{session}": re.escape(session),
        "**/": "(?:[^/]+/)*",
        "*": "[^/]*",
        "?": "[^/]",
    }
    if token.startswith("[") and token.endswith("]"):
        return token.replace("[!", "[^", 1)
    return translations.get(token) or re.escape(token)

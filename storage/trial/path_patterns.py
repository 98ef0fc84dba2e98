"""File patterns of a trial: globs with the fields {subject} and {session}.

`scans/{subject}/{session}/*flair.nii*` finds files, and says of each which subject it is of. `*`
and `?` stay within one folder, `**` stands for any number of them. {subject} is the shortest name
that fits, and the same wherever it stands in one pattern.
"""

import glob
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath

FIELDS = ("subject", "session")
_TOKEN = re.compile(r"(\{\w*\}|\*\*/|\*|\?|\[[^]/]+\])")


def check_pattern(pattern: str, *, session: bool) -> str | None:
    """What is wrong with a pattern, None if nothing; `session` says whether it must name one."""
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
    """Each file below `root` that fits the pattern with that session, and its subject, in order."""
    wanted = pattern.replace("{session}", glob.escape(session)).replace("{subject}", "*")
    # Path.glob takes twice as long.
    for path in sorted(glob.glob(wanted, root_dir=root, recursive=True)):  # noqa: PTH207
        if (subject := match_subject(path, pattern, session=session)) is not None:
            yield subject, root / path


def find_folders(root: Path, pattern: str) -> Iterator[str]:
    """The subjects that have a folder of their own below `root`, with files in it or not."""
    parts = PurePosixPath(pattern).parts
    depth = next(i for i, part in enumerate(parts) if "{subject}" in part) + 1
    if depth < len(parts) and "{session}" not in "/".join(parts[:depth]):
        for subject, path in find_files(root, "/".join(parts[:depth]), session=""):
            if path.is_dir():
                yield subject


def match_subject(path: str, pattern: str, *, session: str) -> str | None:
    """The subject whose file of that session `path` (relative, with /) is, None if it is none."""
    found = _expression(pattern, session).fullmatch(path)
    return found["subject"] if found else None


@lru_cache(maxsize=64)
def _expression(pattern: str, session: str) -> re.Pattern[str]:
    tokens = _TOKEN.split(pattern)
    first = tokens.index("{subject}")
    return re.compile(
        "".join(
            r"(?P<subject>[^/]+?)" if place == first else _translate(token, session)
            for place, token in enumerate(tokens)
        )
    )


def _translate(token: str, session: str) -> str:
    known = {
        "{subject}": "(?P=subject)",
        "{session}": re.escape(session),
        "**/": "(?:[^/]+/)*",
        "*": "[^/]*",
        "?": "[^/]",
    }
    if token.startswith("[") and token.endswith("]"):
        return token.replace("[!", "[^", 1)
    return known.get(token) or re.escape(token)

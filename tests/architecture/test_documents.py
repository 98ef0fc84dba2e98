"""The documents: links, commands and file names in them exist, and front pages stay short."""

import dataclasses
import re
import typing
from pathlib import Path

import pytest

from lesioncast.config import Config
from tests.architecture.tree import ROOT, tracked

FRONT_PAGE_LINES = 150
FOLDER_PAGE_LINES = 120
CHANGELOG = Path("CHANGELOG.md")  # the one page that names what no longer exists
CODE = re.compile(r"^(?: {4}|\t)(?=\S).*$|^ {7,}\S.*$", re.M)
FENCE = re.compile(r"^```.*?\n(.*?)^```", re.M | re.S)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"(?<!\\)\[[^\]]*\]\(([^)\s]+)\)")


FILES = tracked()
DOCUMENTS = [path for path in FILES if path.suffix == ".md"]
CURRENT = [path for path in DOCUMENTS if path != CHANGELOG]


def parametrize_documents(documents: list[Path]) -> pytest.MarkDecorator:
    """Run a test once for each document."""
    return pytest.mark.parametrize("document", documents, ids=str)


def read(document: Path) -> str:
    """Return the text of a document."""
    return (ROOT / document).read_text(encoding="utf-8")


def without_code(text: str) -> str:
    """Return the prose of a document: code is no link."""
    return INLINE.sub("", CODE.sub("", FENCE.sub("", text)))


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives to a document's headings."""
    names: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", FENCE.sub("", read(document)), re.M):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number = 1
        unique = name
        while unique in names:
            unique, number = f"{name}-{number}", number + 1
        names.add(unique)
    return names


def commands(document: Path) -> str:
    """Return all code of a document, one command a line: continued lines are joined."""
    text = read(document)
    blocks = [*FENCE.findall(text), *CODE.findall(FENCE.sub("", text)), *INLINE.findall(text)]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(blocks))
    return "\n".join(line.strip() for line in joined.splitlines())


@parametrize_documents(DOCUMENTS)
def test_links_lead_to_files_and_headings_that_exist(document: Path) -> None:
    broken = []
    for target in LINK.findall(without_code(read(document))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / document.parent / name).resolve() if name else ROOT / document
        if not path.exists() or not path.is_relative_to(ROOT):
            broken.append(target)
            continue
        page = path / "README.md" if path.is_dir() else path
        if anchor and anchor not in anchors(page.relative_to(ROOT)):
            broken.append(target)
    assert not broken


@parametrize_documents([path for path in DOCUMENTS if path.name == "README.md"])
def test_front_pages_stay_short(document: Path) -> None:
    limit = FRONT_PAGE_LINES if document == Path("README.md") else FOLDER_PAGE_LINES
    assert len(read(document).splitlines()) <= limit


def test_the_front_page_names_no_commit() -> None:
    assert not re.search(r"\b(?=[0-9a-f]*\d)(?=\d*[a-f])[0-9a-f]{7,10}\b", read(Path("README.md")))


@parametrize_documents(CURRENT)
def test_scripts_modules_and_targets_exist(document: Path) -> None:
    text = commands(document)
    scripts = re.findall(r"python3?(?:\.11)? ((?!-)[\w/.]+\.py)", text)
    assert not [name for name in scripts if not (ROOT / name).is_file()]
    modules = re.findall(r"python3? -m ((?:lesioncast|serve|storage)[\w.]*)", text)
    assert not [name for name in modules if not is_module(name)]
    targets = set(re.findall(r"^([\w-]+):", read(Path("Makefile")), re.M))
    assert set(re.findall(r"(?:^|&& )make (\w+)", text, re.M)) <= targets


def is_module(name: str) -> bool:
    """Return whether a dotted name is a module or package of this repository."""
    path = Path(*name.split("."))
    return any(
        (ROOT / root / path).with_suffix(".py").is_file() or (ROOT / root / path).is_dir()
        for root in ("", "platform")
    )


@parametrize_documents(CURRENT)
def test_subcommands_flags_and_configurations_exist(document: Path) -> None:
    text = commands(document)
    jobs = {path.stem for path in (ROOT / "platform/lesioncast/jobs").glob("*.py")}
    named = set(re.findall(r"^lesioncast ([a-z]+)\b", text, re.M))
    assert named <= jobs | {"serve"}
    configs = re.findall(r"--config ((?!FILE)[\w/.]+)", text)
    shipped = ROOT / "jobs" / "configs"
    assert not [
        name
        for name in configs
        if not (ROOT / name).is_file() and not (shipped / f"{name}.yaml").is_file()
    ]
    source = "\n".join((ROOT / path).read_text() for path in FILES if path.suffix == ".py")
    ours = re.findall(r"^(?:lesioncast|ray job submit|.*\bpython3?) .*$", text, re.M)
    flags = {flag for line in ours for flag in re.findall(r" (--[a-z][\w-]*)", line)}
    other = {"--runtime-env"}  # of `ray job submit`
    assert not {flag for flag in flags - other if f'"{flag}"' not in source}


@parametrize_documents(CURRENT)
def test_configuration_keys_exist(document: Path) -> None:
    keys = re.findall(r"--set[ =]'?([a-z][\w.]*)=", commands(document))
    assert not [key for key in keys if not is_key(key)]


def is_key(key: str) -> bool:
    """Return whether a dotted key, such as `pretrain.steps`, is one of the configuration."""
    section: typing.Any = Config
    for part in key.split("."):
        if not dataclasses.is_dataclass(section):
            return False
        hints = typing.get_type_hints(section)
        if part not in hints:
            return False
        section = hints[part]
    return True


@parametrize_documents(CURRENT)
def test_named_sources_and_overlays_exist(document: Path) -> None:
    present = [f"/{path}" for path in FILES]
    named = re.findall(r"`([\w/.-]+\.(?:py|yaml))`", read(document))
    assert not [name for name in named if not any(path.endswith(f"/{name}") for path in present)]
    dotted = re.findall(r"`((?:lesioncast|serve|storage)(?:\.[a-z_]+)+)`", read(document))
    assert not [name for name in dotted if not is_module(name) and not is_attribute(name)]
    for path in re.findall(r"-[kf] (k8s/[^\s`]+)", commands(document)):
        assert all((ROOT / path.replace("$O", name)).exists() for name in ("dev", "gpu")), path


def is_attribute(name: str) -> bool:
    """Return whether the last part of a dotted name is something that its module defines."""
    module, _, attribute = name.rpartition(".")
    folder = Path(*module.split("."))
    sources = [
        path
        for root in (ROOT, ROOT / "platform")
        for path in ((root / folder).with_suffix(".py"), root / folder / "__init__.py")
        if path.is_file()
    ]
    return any(re.search(rf"\b{attribute}\b", path.read_text()) for path in sources)


@parametrize_documents(DOCUMENTS)
def test_rows_of_a_table_have_the_same_number_of_cells(document: Path) -> None:
    prose = without_code(read(document))
    for table in re.findall(r"(?:^\|.*\|$\n?)+", prose, re.M):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table


def old_names() -> set[str]:
    """Return the dotted names and files in the columns `old` of the changelog's tables."""
    names: set[str] = set()
    for table in re.findall(r"(?:^\|.*\|$\n?)+", read(CHANGELOG), re.M):
        rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines()]
        column = rows[0].index("old")
        names |= {name for row in rows[2:] for name in INLINE.findall(row[column])}
    return {name for name in names if re.fullmatch(r"[a-z]\w*(?:\.[\w*]+)+", name)}


@parametrize_documents(CURRENT)
def test_old_names_stand_in_the_changelog_alone(document: Path) -> None:
    assert len(old_names()) > 10
    text = read(document)
    for name in old_names():
        pattern = re.escape(name).replace(re.escape("*"), r"\w+")
        assert not re.search(rf"(?<![\w./]){pattern}(?!\w|[./]\w)", text), name

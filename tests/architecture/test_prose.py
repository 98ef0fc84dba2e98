"""Prose rules: how docstrings open, and which names of earlier versions are gone."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.architecture.tree import ROOT, tracked


def words(text: str) -> frozenset[str]:
    """Return the words of a text that lists them over several lines."""
    return frozenset(text.split())


OURS = ("storage", "serve", "platform/lesioncast", "jobs")
# A docstring opens with what the function does: "Return ...", "Write ...", "Raise ...".
FORBIDDEN_OPENINGS = words(
    """
    a all an any as at before both by each either every for from how if in its like no none not
    nothing of on one only or so such that the their there these this those to what when where
    whether which while who whose with without
    """
)
WIDESPREAD_OPENINGS = frozenset(("the", "a", "an", "what", "whether", "where", "how", "one"))
# Names of earlier versions that no reader would look for. CHANGELOG.md and the table of removed
# configuration keys name them on purpose.
REMOVED_NAMES = words(
    """
    CaseCache CohortSettings ControlledUNet Desk Doors ForecasterReplica HeldOut KeyReusedError
    LoadPrior NobodyDrawsError OwnClusterTrainer RefusedError SamplerReplica SamplerWishes
    ScalarModel Served Stated StoredRows Told TrainingMeter UNetAlone UploadOrder VoxelHead
    VoxelPerceptron Wished Wishes

    FAN_OUT FIRST_WAIT FORGOTTEN_SECONDS LEAST_CHANCE LONGEST_WAIT PREPARED_TOGETHER QUIET_POLLS
    ROOM_EVERY_S SAY_EVERY_S SETTLED_AFTER_S TIDY_SECONDS

    _how_it_was_made _how_it_went _one_door _settle _tidy_files _whole add_asking add_following
    altered_file as_activity bundle_remark caution_text cases_at_hand drawn_by drawn_load
    effects_record evaluated_warnings first_with_room fit_scalar_model has_truth held_out
    image_looks image_scalars known_covariates lay_onto likely_coverage load_of make_api
    masks_record open_desk order_remarks own_tallies read_sentences sessions_seen settled_splits
    shown_remark spread_out spread_t stated_of thresholded tidy_csv told_words upload_folder
    wake_forecaster warnings_record whole_folder working_nodes write_assessment
    """
)
MAY_NAME_THEM = {Path("CHANGELOG.md"), Path("platform/lesioncast/config.py")}
CODE_SPAN = re.compile(r"`([^`\n]+)`")


class Docstring(NamedTuple):
    """A function's docstring, with a place to click on."""

    place: str
    first_line: str

    @property
    def opening(self) -> str:
        """The first word in lower case, without quotes or brackets."""
        words = re.findall(r"[A-Za-z']+", self.first_line)
        return words[0].lower() if words else ""


def function_docstrings(*folders: str) -> Iterator[Docstring]:
    """Yield the docstrings of all functions and methods, but not of properties and fixtures."""
    for path in tracked():
        if path.suffix != ".py" or not any(path.is_relative_to(folder) for folder in folders):
            continue
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            text = ast.get_docstring(node)
            if text and not describes_a_value(node):
                yield Docstring(f"{path}:{node.lineno} {node.name}", text.splitlines()[0])


def describes_a_value(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return True for a property or a fixture, whose docstring may name the value it gives."""
    names = (ast.unparse(decorator).split(".")[-1] for decorator in function.decorator_list)
    return any(name in ("property", "cached_property", "fixture") for name in names)


def names_in(path: Path) -> set[str]:
    """Return a file's identifiers: Python's own, and the words between backticks."""
    text = (ROOT / path).read_text()
    names = {word for span in CODE_SPAN.findall(text) for word in re.findall(r"\w+", span)}
    if path.suffix == ".py":
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        names |= {token.string for token in tokens if token.type == tokenize.NAME}
    return names


@pytest.mark.parametrize("folder", OURS)
def test_function_docstrings_open_with_a_verb(folder: str) -> None:
    faulty = [text for text in function_docstrings(folder) if text.opening in FORBIDDEN_OPENINGS]
    assert [f"{text.place}: {text.first_line}" for text in faulty] == []


def test_few_docstrings_of_tests_open_with_an_article_or_a_question_word() -> None:
    texts = list(function_docstrings("tests", "k8s"))
    faulty = [text for text in texts if text.opening in WIDESPREAD_OPENINGS]
    assert len(faulty) < len(texts) / 10, [text.place for text in faulty]


def test_no_name_of_an_earlier_version_is_left() -> None:
    checked = {".py", ".md", ".yaml", ".json", ".html"}
    skipped = MAY_NAME_THEM | {Path(__file__).relative_to(ROOT)}
    left = {
        f"{path}: {name}"
        for path in tracked()
        if path.suffix in checked and path not in skipped
        for name in names_in(path) & REMOVED_NAMES
    }
    assert sorted(left) == []

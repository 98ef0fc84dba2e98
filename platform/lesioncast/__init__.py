"""Forecasts of new multiple-sclerosis lesions under each treatment arm (arXiv 2508.07006).

`lesioncast.load_bundle` and `lesioncast.Patient` are the Python API, from `lesioncast.api`.
"""

from importlib import import_module
from typing import Any

__all__ = ["Patient", "load_bundle"]


def __getattr__(name: str) -> Any:
    # The API imports torch, which takes seconds. It is imported by name when it is first used, so
    # that `import lesioncast` stays cheap and this package imports nothing above it.
    if name in __all__:
        return getattr(import_module("lesioncast.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

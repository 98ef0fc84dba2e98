"""Versions of installed packages."""

from importlib.metadata import PackageNotFoundError, version


def installed_version(package: str = "lesioncast") -> str:
    """Return the installed version of a package, "unreleased" if it is not installed.

    lesioncast is not installed where it runs from its source tree.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return "unreleased"

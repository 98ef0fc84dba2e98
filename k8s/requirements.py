"""Print what the image installs: the dependencies in pyproject.toml without the project itself.

python k8s/requirements.py > requirements.txt
"""

import tomllib
from pathlib import Path

EXTRAS = ("serve", "dicom", "postgres")


def requirements(pyproject: Path) -> list[str]:
    """Return the dependencies of the project and of those `EXTRAS` that it defines."""
    project = tomllib.loads(pyproject.read_text())["project"]
    extras = project.get("optional-dependencies", {})
    return [*project["dependencies"], *(line for name in EXTRAS for line in extras.get(name, ()))]


if __name__ == "__main__":
    print("\n".join(requirements(Path("pyproject.toml"))))

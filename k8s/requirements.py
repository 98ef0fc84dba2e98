"""What the image installs: the packages of pyproject.toml without the project itself.

python k8s/requirements.py > requirements.txt
"""

import tomllib
from pathlib import Path

EXTRAS = ("serve", "dicom", "postgres")


def requirements(pyproject: Path) -> list[str]:
    """The dependencies of the project and of those of `EXTRAS` that it has."""
    project = tomllib.loads(pyproject.read_text())["project"]
    extras = project.get("optional-dependencies", {})
    return [*project["dependencies"], *(each for name in EXTRAS for each in extras.get(name, ()))]


if __name__ == "__main__":
    print("\n".join(requirements(Path("pyproject.toml"))))

"""Where `grammar/` and `rules/` are: inside an installed wheel, else in the checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource_dir(name: str) -> Path:
    """The folder `grammar` or `rules`; raises FileNotFoundError when the installation lacks it."""
    for parent in (_PACKAGE / "_data", _PACKAGE.parent):
        folder = parent / name
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"the {name} folder is missing from this installation of urelay")

"""Policies written into a folder for one test."""

from __future__ import annotations

from pathlib import Path

from urelay.lang.diagnostics import Severity
from urelay.policy.check import Checked, check_file
from urelay.policy.model import Policy


def checked(folder: Path, text: str, **others: str) -> Checked:
    """Check `text` as main.urr; `others` are files beside it, by stem: `lists_txt` is lists.txt."""
    for name, content in others.items():
        (folder / name.replace("_", ".")).write_text(content, encoding="utf-8")
    main = folder / "main.urr"
    main.write_text(text, encoding="utf-8")
    return check_file(str(main))


def sound(folder: Path, text: str, **others: str) -> Policy:
    """The policy `text` means; an error in it fails the test."""
    found = checked(folder, text, **others)
    assert found.policy is not None, [
        one.message for one in found.diagnostics if one.severity is Severity.ERROR
    ]
    return found.policy


def codes(found: Checked) -> list[str]:
    return [one.code for one in found.diagnostics]

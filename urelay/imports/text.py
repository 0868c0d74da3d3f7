"""What every import writes: a policy line by line, in which nothing read can become something else.

Whatever has no equivalent stays in the policy as a comment, in the words it came in, so that whoever
reads the result sees what is missing and where.
"""

from __future__ import annotations

from urelay.net.address import Host, address_text, printable


class PolicyText:
    """A policy being written."""

    def __init__(self, source: str, command: str) -> None:
        """`source` is the name of the file that is imported."""
        self._lines = [f"# {printable(source)}, read by `urelay import {command}`"]
        self._seen: set[str] = set()
        self._names: dict[str, str] = {}

    def blank(self) -> None:
        """An empty line."""
        self._lines.append("")

    def comment(self, text: str) -> None:
        """A remark."""
        self._lines.append(f"# {text}")

    def lost(self, what: object, why: str) -> None:
        """Say that `what` was there and is not in the policy."""
        self.comment(f"not here: {printable(str(what), 120)}: {why}")

    def line(self, text: str) -> None:
        """A statement."""
        self._lines.append(text)

    def route(self, region: str, action: str, allow: str | None = None) -> None:
        """`match REGION -> ACTION`; the first one that is written about a region stands.

        `allow` is what a check would warn of, and why it is meant: `UR228: …`.
        """
        if region in self._seen:
            self.lost(f"{region} -> {action}", "said before, and the first one counts")
            return
        self._seen.add(region)
        if allow is not None:
            self.comment(f"allow {allow}")
        self._lines.append(f"match {region} -> {action}")

    def named(self, what: str, definition: str) -> str:
        """The name of the `what` that is defined so; it is written when it is first asked for."""
        name = self._names.get(definition)
        if name is None:
            name = self._names[definition] = f"{what}-{len(self._names) + 1}"
            self._lines.append(f"{what} {name} = {definition}")
        return name

    def __str__(self) -> str:
        return "\n".join(self._lines) + "\n"


def host_word(host: Host) -> str:
    """A host as the language writes it: a name of one label in quotes."""
    if isinstance(host, bytes):
        return address_text(host)
    return host if "." in host else f'"{host}"'


def path_word(path: str) -> str | None:
    """A path in quotes; None for one that a policy cannot hold."""
    return f'"{path}"' if path.isprintable() and '"' not in path and path else None

"""`python -m urelay serve` as a test sees it: signals in, lines on stderr and the access log out."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.e2e.rig import READY_S, Namespace, Program, until

ROOT = Path(__file__).resolve().parents[2]

Record = dict[str, Any]


class Urelay(Program):
    """A running relay with an access log; `finish` stops it and judges how it lived."""

    def __init__(
        self,
        policy: Path,
        netns: Namespace | None = None,
        *options: str,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        prefix: Sequence[str] = (),
    ) -> None:
        self.policy = policy
        self.log = policy.with_suffix(".jsonl")
        argv = [*prefix, *serve_command(Path(policy.name), "--access-log", str(self.log), *options)]
        super().__init__(
            argv, netns, env={"PYTHONPATH": str(ROOT), **(env or {})}, pass_fds=pass_fds, cwd=policy.parent
        )
        self.netns = netns

    def ready(self) -> Urelay:
        """Itself, once it says that every listener is bound."""
        self.wait_line("serving")
        self._sockets = self.sockets()
        return self

    def sockets(self) -> int:
        """How many sockets it holds."""
        count = 0
        for entry in os.scandir(f"/proc/{self.pid}/fd"):
            try:
                count += os.readlink(entry.path).startswith("socket:")
            except FileNotFoundError:
                continue
        return count

    def records(self, count: int, timeout_s: float = READY_S) -> list[Record]:
        """Every access-log record, once there are `count`; more than that is a failure."""

        def read() -> list[Record] | None:
            lines = self.log.read_text(encoding="ascii").splitlines() if self.log.exists() else []
            return [json.loads(line) for line in lines] if len(lines) >= count else None

        found = until(read, f"{count} access-log lines", timeout_s) if count else (read() or [])
        assert len(found) == count, found
        return found

    def reload(self, says: str = "reloaded") -> str:
        """SIGHUP; the line that tells what came of it."""
        since = len(self.lines)
        self.send(signal.SIGHUP)
        return self.wait_line(says, since)

    def namespaces(self) -> set[int]:
        """The network namespaces its threads are in, by inode."""
        return {os.stat(f"{task.path}/ns/net").st_ino for task in os.scandir(f"/proc/{self.pid}/task")}

    def finish(self) -> None:
        """SIGTERM, then: exit status 0, no traceback, every thread stayed at home, no socket leaked."""
        if self.process.poll() is None:
            home = os.stat("/proc/self/ns/net").st_ino if self.netns is None else self.netns.inode()
            # A thread may visit another one; none stays.
            until(lambda: self.namespaces() == {home}, "every thread is at home")
            until(
                lambda: self.sockets() <= self._sockets,
                f"back to {self._sockets} sockets (it holds {self.sockets()})",
            )
        status = self.stop()
        assert "Traceback" not in self.output, self.output
        assert status == 0, f"exit status {status}:\n{self.output}"


def serve_command(policy: Path, *options: str) -> list[str]:
    """The command line of `urelay serve`."""
    return [sys.executable, "-m", "urelay", "serve", *options, str(policy)]

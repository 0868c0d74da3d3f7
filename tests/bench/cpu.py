"""What a group of processes has used: CPU time by the nanosecond, resident memory, pipes.

A relay may be one process, a family of threads or a process a connection, so every contender starts in a
control group of its own and that is what is asked: it also counts threads and children that have ended.
Version 2 of the groups says microseconds, version 1 nanoseconds.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from pathlib import Path

_MOUNTS = ((Path("/sys/fs/cgroup"), "cpu.stat"), (Path("/sys/fs/cgroup/unified"), "cpu.stat"))
_OLD = (Path("/sys/fs/cgroup/cpuacct"), "cpuacct.usage")
_numbers = itertools.count(1)


class Group:
    """A control group: enter it with `command`; `close` kills what is left in it and removes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def make(cls) -> Group:
        """A new group. Raises OSError where none can be made."""
        name = f"urb-{os.getpid()}-{next(_numbers)}"
        for mount, counter in (_OLD, *_MOUNTS):
            if (mount / counter).exists() or (mount / "cgroup.procs").exists():
                try:
                    (mount / name).mkdir()
                except OSError:
                    continue
                if (mount / name / counter).exists():
                    return cls(mount / name)
                (mount / name).rmdir()
        raise OSError("no control group that counts CPU time can be made here")

    def command(self, argv: list[str], core: int) -> list[str]:
        """The command line that runs `argv` in the group and on one core, as the very process started."""
        enter = 'echo $$ >"$0" && exec taskset -c "$@"'
        return ["sh", "-c", enter, str(self.folder / "cgroup.procs"), str(core), *argv]

    def pids(self) -> list[int]:
        """The processes in it."""
        return [int(line) for line in (self.folder / "cgroup.procs").read_text().split()]

    def nanoseconds(self) -> int:
        """The CPU time used in it since it was made."""
        old = self.folder / _OLD[1]
        if old.exists():
            return int(old.read_text())
        return int((self.folder / "cpu.stat").read_text().split(maxsplit=2)[1]) * 1000

    def resident(self) -> int:
        """The resident memory of its processes in bytes; what they share is counted once."""
        total = 0
        for pid in self.pids():
            found = re.search(r"^Pss:\s+(\d+) kB", _read(f"/proc/{pid}/smaps_rollup"), re.MULTILINE)
            total += int(found[1]) * 1024 if found else 0
        return total

    def pipes(self) -> int:
        """How many pipe ends its processes hold."""
        return sum(_pipe_ends(pid) for pid in self.pids())

    def close(self) -> None:
        """Ends what is still in it; the kernel needs a moment to let go of the dead."""
        deadline = time.monotonic() + 10
        while True:
            for pid in self.pids():
                try:
                    os.kill(pid, 9)
                except ProcessLookupError:
                    continue
            try:
                self.folder.rmdir()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _pipe_ends(pid: int) -> int:
    count = 0
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            try:
                count += os.readlink(entry.path).startswith("pipe:")
            except FileNotFoundError:
                continue
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return count

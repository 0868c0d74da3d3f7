"""What a relay's processes have used: CPU time by the nanosecond, resident memory, pipes.

A relay may be one process, a family of threads, or a process a connection. So every contender starts in a
control group of its own and that is what is asked: it also counts threads and children that have ended.
Where no group can be made, the clocks of the process and its descendants are read instead; then children
that ended count by the kernel's ticks of 10 ms.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

_GROUPS = (
    # Version 1 of the groups counts nanoseconds, version 2 (alone or beside it) microseconds.
    (Path("/sys/fs/cgroup/cpuacct"), "cpuacct.usage"),
    (Path("/sys/fs/cgroup"), "cpu.stat"),
    (Path("/sys/fs/cgroup/unified"), "cpu.stat"),
)
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_numbers = itertools.count(1)


class Processes(ABC):
    """The processes of one relay. `name` is all that another process needs to find them: see `named`."""

    name: str

    @abstractmethod
    def pids(self) -> list[int]:
        """Those that live."""

    @abstractmethod
    def nanoseconds(self) -> int:
        """The CPU time they have used, those that have ended included."""

    def resident(self) -> int:
        """Their resident memory in bytes; what they share is counted once."""
        total = 0
        for pid in self.pids():
            text = _read(f"/proc/{pid}/smaps_rollup")
            found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
            total += int(found[1]) * 1024 if found else 0
        return total

    def pipes(self) -> int:
        """How many pipe ends they hold."""
        return sum(link.startswith("pipe:") for pid in self.pids() for link in _descriptors(pid))

    def close(self) -> None:
        """Ends those that are left."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Group(Processes):
    """A control group, removed by `close`."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self._folder = folder
        self._old = folder / "cpuacct.usage"
        self._is_old = self._old.exists()

    @classmethod
    def make(cls) -> Group | None:
        """A new group, or None where none can be made that counts."""
        name = f"urb-{os.getpid()}-{next(_numbers)}"
        for mount, counter in _GROUPS:
            with contextlib.suppress(OSError):
                (mount / name).mkdir()
                if (mount / name / counter).exists():
                    return cls(mount / name)
                (mount / name).rmdir()
        return None

    def command(self, argv: list[str]) -> list[str]:
        """The command line that runs `argv` in the group, as the very process that is started."""
        return ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self._folder / "cgroup.procs"), *argv]

    def pids(self) -> list[int]:
        return [int(line) for line in (self._folder / "cgroup.procs").read_text().split()]

    def nanoseconds(self) -> int:
        if self._is_old:
            return int(self._old.read_text())
        return int((self._folder / "cpu.stat").read_text().split(maxsplit=2)[1]) * 1000

    def close(self) -> None:
        deadline = time.monotonic() + 10
        while self._folder.exists():
            super().close()
            try:
                self._folder.rmdir()
            except OSError:  # the kernel needs a moment to let go of the dead
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


class Family(Processes):
    """A process and its descendants."""

    def __init__(self, pid: int) -> None:
        self.name = str(pid)
        self._pid = pid

    def pids(self) -> list[int]:
        found = [self._pid] if Path(f"/proc/{self._pid}").exists() else []
        for pid in found:  # it grows
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, _read(str(task)).split())
        return found

    def nanoseconds(self) -> int:
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError, IndexError):
                # The clock of another process (clock_getcpuclockid(3)) counts its ended threads too.
                total += time.clock_gettime_ns(~pid << 3 | 2)
                ended = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()[13:15]
                total += sum(map(int, ended)) * _TICK_NS
        return total


def named(name: str) -> Processes:
    """The processes that are called so."""
    return Family(int(name)) if name.isdigit() else Group(Path(name))


def _descriptors(pid: int) -> Iterator[str]:
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                yield os.readlink(entry.path)
    except (FileNotFoundError, ProcessLookupError):
        return


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""

"""Where the contenders meet: namespaces with nothing else in them, a core each for relay and load.

All relays, the servers and most clients are in one namespace, on loopback; a contender that serves a whole
namespace gets one of its own for its clients. Nothing outside is touched.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.bench.contenders import Contender
from tests.bench.cpu import Family, Group, Processes
from tests.bench.recipes import ADDRESS, ELSEWHERE, ROOT, Recipe, Site
from tests.e2e.rig import Namespace, Network, Program, until

DESCRIPTORS = 250_000
"""What every process may open, where the system lets us say so"""

_FIRST_PORT = 8000

CONGESTION = ("cubic", "reno")
"""Linux's own default, and what every machine allows. Some machines' default is bbr, which sends at a pace by
timers, on loopback too: then the timers are what is measured"""


class Failed(Exception):
    """A contender that did not do what was asked; the message says what came instead."""


class Stage:
    """The namespaces, the load, and the contenders started in them; leaving ends and removes them all."""

    def __init__(self, congestion: tuple[str, ...] = CONGESTION) -> None:
        """`congestion`: TCP congestion controls, of which the first that is allowed is everybody's."""
        self.congestion = ""
        """The one that is used"""
        self._wanted = congestion
        self._exits = contextlib.ExitStack()
        self._ports = itertools.count(_FIRST_PORT, 2)
        cores = sorted(os.sched_getaffinity(0))
        self.relay_core, self.load_core = cores[0], cores[-1]

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as exits:
            _raise_limits()
            Namespace.remove_forgotten()
            # Under /tmp and not below us: a unix socket's path may have 107 bytes.
            self.folder = Path(tempfile.mkdtemp(prefix="urelay-bench-"))
            exits.callback(shutil.rmtree, self.folder)
            self.folder.chmod(0o711)
            self._network = exits.enter_context(Network())
            self._host = self._namespace("host")
            # A way out for whoever wants one before it starts; it leads nowhere.
            self._host.ip("link", "add", "out", "type", "veth", "peer", "name", "nowhere")
            self._host.ip("link", "set", "nowhere", "up")
            self._host.address("out", "192.0.2.2/24")
            self._host.default_route("192.0.2.1")
            self._load = self._start_load()
            exits.callback(self._end_load)
            self._exits = exits.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.close()

    def start(self, contender: Contender) -> Running:
        """A contender, ready to be used. Raises Missing or Failed."""
        running = Running(self, contender)
        self._exits.callback(running.stop)
        running.start()
        return running

    def site(self, label: str) -> Site:
        """What a recipe may use."""
        folder = self.folder / label.replace(" ", "-")
        folder.mkdir()
        return Site(folder, next(self._ports), lambda name: self._namespace(name).path, self._serve_in)

    @property
    def host(self) -> str:
        """The path of the namespace of relays and servers."""
        return self._host.path

    def ask(self, **job: Any) -> dict[str, float]:
        """What the load has to say to a job. Raises Failed."""
        defaults = {
            "way": "plain", "place": ("", 0), "netns": None, "processes": None, "core": self.load_core
        }  # fmt: skip
        assert self._load.stdin is not None
        assert self._load.stdout is not None
        self._load.stdin.write(json.dumps(defaults | job) + "\n")
        self._load.stdin.flush()
        found: dict[str, Any] = json.loads(self._load.stdout.readline() or '{"error": "the load ended"}')
        if "error" in found:
            raise Failed(found["error"])
        return found

    def _namespace(self, label: str) -> Namespace:
        made = self._network.namespace(label)
        # Ports in TIME_WAIT may be used again after a second, or a fast relay would run out of them.
        for key, value in (("ip_local_port_range", "10000 65535"), ("tcp_tw_reuse", "1")):
            _tune(made, key, value)
        allowed = (one for one in self._wanted if _tune(made, "tcp_congestion_control", one))
        self.congestion = next(allowed, "")
        if not self.congestion:
            raise Failed(f"the congestion control {' or '.join(self._wanted)} is not allowed here")
        if label == "lan":
            made.everything_is_local()
        elif label in ("host", "redsocks"):
            made.address("lo", f"{ADDRESS}/32", f"{ELSEWHERE}/32" if label == "redsocks" else "127.0.0.2/8")
        return made

    def _serve_in(self, netns: str) -> None:
        self.ask(does="serve", netns=netns)

    def _start_load(self) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "tests.bench.load", str(self.folder), ADDRESS]
        load = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "--", *self._host.command(argv)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert load.stdout is not None
        if not load.stdout.readline():
            raise Failed("the load did not start")
        return load

    def _end_load(self) -> None:
        assert self._load.stdin is not None
        assert self._load.stdout is not None
        self._load.stdin.close()
        self._load.wait(20)
        self._load.stdout.close()


class Running:
    """A contender that was started, and can be started again."""

    def __init__(self, stage: Stage, contender: Contender) -> None:
        self.contender = contender
        self.processes: Processes | None = None
        self.carries = contender.held_most
        """How many idle connections it can hold, as far as is known"""
        self._stage = stage
        self._program: Program | None = None
        self._site = stage.site(contender.name)
        self._recipe = Recipe([]) if contender.recipe is None else contender.recipe(self._site)

    def start(self) -> None:
        """Starts it and waits until one byte comes back through it. Raises Missing or Failed."""
        recipe = self._recipe
        if recipe.argv:
            core = str(self._stage.relay_core)
            home = recipe.home or self._stage.host
            argv = ["taskset", "-c", core, "nsenter", f"--net={home}", "--", *recipe.argv]
            group = Group.make()
            self._program = Program(group.command(argv) if group else argv, cwd=self._site.folder)
            self.processes = group or Family(self._program.pid)
        try:
            until(self._works, "a byte comes back")
        except AssertionError as error:
            told = self._program.output[-300:] if self._program else ""
            self.stop()
            raise Failed(f"does not start: {str(error).splitlines()[0]} {told}".strip()) from None

    def _works(self) -> bool:
        try:
            self.ask("rate", seconds=0.0, flight=1)
        except Failed as error:
            if self._program is not None and self._program.process.poll() is not None:
                raise AssertionError(f"it ended: {error}") from None
            return False
        return True

    def ask(self, does: str, **settings: Any) -> dict[str, float]:
        """A job for the load with this contender between. Raises Failed."""
        recipe = self._recipe
        job = {
            "does": does,
            "way": recipe.way,
            "place": recipe.sink if does == "bulk" else recipe.echo,
            "netns": recipe.netns,
            "processes": self.processes.name if self.processes else None,
        }
        return self._stage.ask(**job, **settings)

    def restart(self) -> None:
        """The same in a new process. Raises Failed."""
        self.stop()
        self.start()

    def stop(self) -> None:
        """Ends it and everything it has started; again is harmless."""
        if self._program is not None:
            with contextlib.suppress(Failed):
                self._stage.ask(does="drop")  # so that nobody waits for its connections
            self._program.stop(timeout_s=3)
            self._program = None
        if self.processes is not None:
            self.processes.close()
            self.processes = None


def _tune(netns: Namespace, key: str, value: str) -> bool:
    """Sets one of a namespace's settings of TCP; whether it may be set so."""
    return netns.run("sh", "-c", f"echo {value} >/proc/sys/net/ipv4/{key}").returncode == 0


def one_line(error: Exception) -> str:
    """Why a contender is not measured."""
    return " ".join(str(error).split())[:300]


def _raise_limits() -> None:
    for most in (DESCRIPTORS, resource.getrlimit(resource.RLIMIT_NOFILE)[1]):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            return
        except (OSError, ValueError):
            continue

"""`urelay serve`: starts the relay, reloads its policy, and ends it without cutting anybody off.

    start     prepare the generation, raise the descriptor limit, open every listener, say so
    SIGHUP    prepare another generation beside, on a thread; open what listens anew; swap
    SIGUSR1   open the access log's file again (SIGHUP does so too)
    SIGTERM   accept nobody, let connections finish for `drain_s`, close; a second signal: at once

A swap happens between two events of the loop: the table, the dialer and the listeners change
together, and every connection keeps the table it was accepted under. Whatever fails before it
leaves the running generation as it is, and says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

from urelay.engine.dial import Dialer
from urelay.engine.limits import Limits
from urelay.engine.poller import RelayLoop
from urelay.engine.relay import Relay
from urelay.engine.resolve import Resolver
from urelay.errors import AddressError, PolicyError, StartError
from urelay.lang.render import render_text
from urelay.net.address import Endpoint, parse_address, parse_endpoint, printable
from urelay.services.access_log import AccessLog, open_sink
from urelay.services.captures import Captures
from urelay.services.generation import Generation, prepare
from urelay.services.listeners import Opened, Opener
from urelay.services.log import logging_to
from urelay.services.notify import Notifier
from urelay.services.sink import Sink

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from urelay.engine.record import Record
    from urelay.lang.diagnostics import Diagnostic

T = TypeVar("T")

_STANDARD_ERROR = 2
_DNS_PORT = 53
_STOPPING_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says beside the policy."""

    access_log: str | None = None
    """A file, `-` for standard output, or None: no access log"""
    drain_s: float = 60.0
    resolver: str | None = None
    """`ADDR[:PORT]` of a DNS server to ask instead of the system's"""
    max_connections: int | None = None
    inherited: frozenset[int] = frozenset()
    """The descriptors that were handed to this process"""


def serve(path: str, options: Options) -> int:
    """Relay by the policy in a file until told to stop; returns the exit status, 0.

    Raises PolicyError and StartError when it cannot start; then nothing is left open.
    """
    resolver = Resolver(_servers(options.resolver))
    generation = prepare(path)
    _raise_descriptor_limit()
    opener = Opener(os.environ, options.inherited)
    with contextlib.ExitStack() as at_exit:
        # Closed last, so that whatever happens on the way out is still heard.
        error_sink = Sink(_STANDARD_ERROR)
        at_exit.callback(error_sink.close)
        at_exit.enter_context(logging_to(error_sink))
        access_sink = None
        if options.access_log is not None:
            access_sink = open_sink(options.access_log)
            at_exit.callback(access_sink.close)
        # Called first, for it removes the files of the sockets: last, when nobody is served any more.
        at_exit.callback(opener.close)
        captures = Captures()
        at_exit.callback(captures.close)
        opened = opener.open(generation.policy.listeners.values(), then=captures.apply)
        for name in opener.close_others():
            _log.warning("no listener uses the socket `%s` that systemd handed over", name)
        daemon = Daemon(path, options, opener, captures, resolver, error_sink)
        with asyncio.Runner(loop_factory=RelayLoop) as runner:
            runner.run(daemon.run(generation, opened, access_sink))
    return 0


class Daemon:
    """The running relay and what may happen to it. Lives in one event loop, once."""

    _relay: Relay
    _generation: Generation
    """The one that runs"""

    def __init__(
        self,
        path: str,
        options: Options,
        opener: Opener,
        captures: Captures,
        resolver: Resolver,
        error_sink: Sink,
    ) -> None:
        self._path = path
        self._options = options
        self._opener = opener
        self._captures = captures
        self._resolver = resolver
        self._error_sink = error_sink
        self._notifier = Notifier(os.environ.get("NOTIFY_SOCKET"))
        self._reload_asked = asyncio.Event()
        self._stop_asked = asyncio.Event()
        self._in_a_hurry = False
        self._patience: asyncio.Timeout | None = None
        self._access_log: AccessLog | None = None
        self._opened: list[Opened] = []

    async def run(self, generation: Generation, opened: Sequence[Opened], access_sink: Sink | None) -> None:
        """Relay until a signal says stop, then until the last connection ended or patience did."""
        loop = asyncio.get_running_loop()
        if access_sink is not None:
            self._access_log = AccessLog(access_sink, loop)
        on_end = _forget if self._access_log is None else self._access_log.write
        self._relay = Relay(generation.table, self._dialer(generation), on_end, self._limits())
        try:
            self._begin(generation, opened)
            self._captures.follow(loop)
            for number in _STOPPING_SIGNALS:
                loop.add_signal_handler(number, self._stop)
            loop.add_signal_handler(signal.SIGHUP, self._reload_asked.set)
            loop.add_signal_handler(signal.SIGUSR1, self._reopen_access_log)
            # What start-up made stays: the collector need not walk it again for each young object.
            gc.collect()
            gc.freeze()
            self._announce()
            async with asyncio.TaskGroup() as tasks:
                reloading = tasks.create_task(self._reload_when_asked())
                await self._stop_asked.wait()
                reloading.cancel()
            await self._drain()
        finally:
            self._relay.close()
            if self._access_log is not None:
                self._access_log.close()

    # --- start

    def _dialer(self, generation: Generation) -> Dialer:
        return Dialer(self._resolver, generation.logins)

    def _limits(self) -> Limits:
        limits = Limits.for_this_process()
        if self._options.max_connections is not None:
            limits = limits.carrying(self._options.max_connections)
        return limits

    def _begin(self, generation: Generation, opened: Sequence[Opened]) -> None:
        """Let clients in by the listeners of a generation, which is the one that runs from now on."""
        self._generation = generation
        self._show(generation.warnings)
        for one in opened:
            self._add(one)

    def _add(self, one: Opened) -> None:
        self._relay.add_listener(one.listener, one.sock, self._generation.users.get(one.listener.name))
        self._opened.append(one)

    def _stop_accepting(self) -> None:
        for one in self._opened:
            self._relay.remove_listener(one.listener.name)
        self._opened.clear()

    def _announce(self) -> None:
        """The one line that says everything listens: scripts wait for it, so it bears no time."""
        listeners = (
            ", ".join(_described(one) + self._captures.described(one) for one in self._opened)
            or "nothing listens"
        )
        self._error_sink.write(f"urelay: serving {self._generation.title}: {listeners}\n".encode())
        self._notifier.ready(self._status)

    @property
    def _status(self) -> str:
        return f"serving {self._generation.title}"

    # --- reload

    async def _reload_when_asked(self) -> None:
        while True:
            await self._reload_asked.wait()
            # Cleared first: a signal that comes while the files are read asks for another round.
            self._reload_asked.clear()
            self._notifier.reloading()
            self._reopen_access_log()
            await self._reload()
            self._notifier.ready(self._status)

    async def _reload(self) -> None:
        try:
            generation = await _on_a_thread(lambda: prepare(self._path))
            self._swap(generation)
        except PolicyError as error:
            self._show(error.diagnostics)
            self._keep("it has errors")
        except StartError as error:
            for problem in error.problems:
                _log.error("%s", problem)
            self._keep("it cannot be served")
        except Exception:
            # A reload must not end the relay, whatever is wrong with it.
            _log.exception("an unexpected error while reloading")
            self._keep("an unexpected error")
        else:
            _log.info("reloaded %s", generation.title)

    def _keep(self, why: str) -> None:
        digest = self._generation.policy.digest[:8]
        _log.error("%s was not reloaded: %s; policy %s stays in force", self._path, why, digest)

    def _swap(self, generation: Generation) -> None:
        """Make another generation the one that runs; on StartError nothing has changed."""
        held = {one.key: one.sock for one in self._opened}
        opened = self._opener.open(generation.policy.listeners.values(), held, self._captures.apply)
        self._relay.replace(generation.table, self._dialer(generation))
        self._stop_accepting()
        self._begin(generation, opened)

    def _show(self, diagnostics: Sequence[Diagnostic]) -> None:
        if diagnostics:
            self._error_sink.write(render_text(diagnostics).encode())

    def _reopen_access_log(self) -> None:
        if self._access_log is not None:
            self._access_log.reopen()

    # --- end

    def _stop(self) -> None:
        if self._stop_asked.is_set():
            self._in_a_hurry = True
            if self._patience is not None:
                self._patience.reschedule(asyncio.get_running_loop().time())
        self._stop_asked.set()

    async def _drain(self) -> None:
        """Accept nobody any more, and wait for those who are connected."""
        self._stop_accepting()
        active = self._relay.snapshot().active
        if active:
            who = "1 connection" if active == 1 else f"{active} connections"
            _log.info("stopping: %s may finish for %g s", who, self._options.drain_s)
        else:
            _log.info("stopping")
        self._notifier.stopping("waiting for connections to finish")
        try:
            async with asyncio.timeout(0 if self._in_a_hurry else None) as self._patience:
                await self._relay.drain(self._options.drain_s)
        except TimeoutError:
            _log.info("asked twice: closing every connection now")


def _described(one: Opened) -> str:
    """`lan transparent [::]:1080 in netns lan`."""
    listener, bound = one.listener, one.sock.getsockname()
    if one.sock.family == socket.AF_UNIX:
        return f"{listener.name} {listener.kind} {printable(os.fsdecode(bound))}"
    # A link-local address comes with a zone, which is the interface's business.
    endpoint = Endpoint(parse_address(bound[0].partition("%")[0]), bound[1])
    where = f" in netns {listener.netns}" if listener.netns is not None else ""
    return f"{listener.name} {listener.kind} {endpoint}{where}"


def _forget(record: Record) -> None:
    """What becomes of a connection's record when there is no access log."""


def _servers(text: str | None) -> tuple[Endpoint, ...]:
    """The DNS server that `--resolver` names, `ADDR` or `ADDR:PORT`; none: the system's."""
    if text is None:
        return ()
    try:
        try:
            endpoint = Endpoint(parse_address(text), _DNS_PORT)
        except AddressError:
            endpoint = parse_endpoint(text)
    except AddressError as error:
        raise StartError(f"--resolver: {error}") from None
    if isinstance(endpoint.host, str):
        raise StartError(f"--resolver: `{endpoint.host}` is a name; a resolver needs an address")
    return (endpoint,)


def _raise_descriptor_limit() -> None:
    """Use every descriptor we may have: each connection takes two, and more while bytes move fast."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _on_a_thread(function: Callable[[], T]) -> T:
    """What `function` returns, called on a thread of its own.

    Not the loop's executor: ending the process would wait for whatever that still compiles.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if not future.cancelled():
            future.set_exception(error) if error is not None else future.set_result(cast("T", result))

    def work() -> None:
        result, error = None, None
        try:
            result = function()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is gone, and nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="reload", daemon=True).start()
    return await future

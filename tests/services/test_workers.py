"""With workers nobody is lost: not in a reload, not in a restart, and not when a worker dies.

The listener of most tests is a socket of the test's own, handed over, so no port has to be guessed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.services.rig import Echo, Relay, direct, echoes, through
from urelay.cli.main import main
from urelay.services.daemon import Options

SOCKS = "listen socks = socks fd env URT_LISTENER\n"
Start = Callable[..., Relay]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listening socket that the test keeps."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as sock:
        yield sock


@pytest.fixture
def serve(start: Start, listener: socket.socket) -> Start:
    """Starts a relay with two workers on the test's listener."""

    def begin(text: str, *arguments: str, **options: object) -> Relay:
        number = listener.fileno()
        env = {"URT_LISTENER": str(number), **options.pop("env", {})}  # type: ignore[dict-item]
        return start(text, "--workers", "2", *arguments, env=env, pass_fds=(number,), **options)

    return begin


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def until(condition: Callable[[], object], what: str) -> None:
    """Waits for something that other processes do."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.005)


def state(pid: int) -> tuple[str, int] | None:
    """The state of a process and its parent; None: there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0], int(fields[1])


def workers_of(relay: Relay) -> list[int]:
    """The processes of its workers that run."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    parents = {pid: state(pid) for pid in pids}
    return [
        pid
        for pid, it in parents.items()
        if it is not None and it == (it[0], relay.process.pid) and it[0] != "Z"
    ]


def is_gone(pid: int) -> bool:
    """Whether it has ended, though perhaps nobody has asked for its status yet."""
    it = state(pid)
    return it is None or it[0] == "Z"


def sockets_of(pid: int) -> int:
    count = 0
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            count += os.readlink(entry.path).startswith("socket:")
        except FileNotFoundError:
            continue
    return count


def entries_of(log: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def status(relay: Relay) -> str:
    """What it answers to SIGUSR2."""
    so_far = len(relay.said)
    relay.process.send_signal(signal.SIGUSR2)
    return relay.said[relay.hear("urelay: status: ", so_far) - 1]


def test_workers_share_the_load_and_their_counters_add_up(
    serve: Start,
    listener: socket.socket,
    echo: Echo,
    tmp_path: Path,
) -> None:
    log = tmp_path / "access.jsonl"
    notify = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(notify)
        relay = serve(SOCKS + direct(echo.port), "--access-log", str(log), env={"NOTIFY_SOCKET": notify})
        assert relay.said[-1].endswith(f": socks socks 127.0.0.1:{port_of(listener)}; 2 workers")
        manager.settimeout(20)
        assert manager.recv(4096).startswith(b"READY=1\n")
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(4096)
    made = 0
    while {int(entry["id"]) % 2 for entry in entries_of(log)} != {0, 1}:  # type: ignore[call-overload]
        for _ in range(20):
            with through(port_of(listener), echo.port) as client:
                assert echoes(client)
        made += 20
        assert made < 5000, "one worker gets every client"
    with through(port_of(listener), echo.port) as client:
        assert echoes(client)
        made += 1
        until(lambda: f"; {made - 1} ended ({made - 1} eof);" in status(relay), "every end is counted")
        assert f"status: 1 connection (0 handshaking, 0 dialing); {made} accepted;" in status(relay)
    relay.process.terminate()
    assert relay.end() == 0
    ids = [entry["id"] for entry in entries_of(log)]
    assert len(ids) == len(set(ids)) == made


def test_a_worker_that_is_killed_is_replaced_and_the_other_goes_on(
    serve: Start,
    listener: socket.socket,
    echo: Echo,
    tmp_path: Path,
) -> None:
    log = tmp_path / "access.jsonl"
    relay = serve(SOCKS + direct(echo.port), "--access-log", str(log))
    victim, other = workers_of(relay)
    idle = {pid: sockets_of(pid) for pid in (victim, other)}
    clients: list[socket.socket] = []
    while any(sockets_of(pid) == idle[pid] for pid in idle):
        clients.append(through(port_of(listener), echo.port))
        assert len(clients) < 500, "one worker gets every client"
    kept = (sockets_of(other) - idle[other]) // 2
    os.kill(victim, signal.SIGKILL)
    relay.hear(rf"error: worker \d \(process {victim}\) was killed by SIGKILL")
    relay.hear(r"worker \d \(process \d+\) takes its place")
    alive = 0
    for client in clients:
        try:
            alive += echoes(client)
        except ConnectionError:
            continue
    assert alive == kept > 0
    until(lambda: len(workers_of(relay)) == 2, "there are two workers again")
    for _ in range(20):
        with through(port_of(listener), echo.port) as client:
            assert echoes(client)
    assert f"; {len(clients) + 20} accepted;" in status(relay), "a worker that was killed counted too"
    for client in clients:
        client.close()
    relay.process.terminate()
    assert relay.end() == 0
    ids = [entry["id"] for entry in entries_of(log)]
    assert len(ids) == len(set(ids)) == kept + 20


def test_a_worker_that_is_full_leaves_clients_to_the_others(
    serve: Start, listener: socket.socket, echo: Echo
) -> None:
    relay = serve(SOCKS + direct(echo.port), "--max-connections", "6")
    clients = [through(port_of(listener), echo.port) for _ in range(6)]
    with socket.create_connection(listener.getsockname(), timeout=20) as late:
        late.sendall(b"\x04\x01" + echo.port.to_bytes(2) + bytes((127, 0, 0, 1)) + b"\0")
        assert all(echoes(client) for client in clients)
        assert "status: 6 connections (0 handshaking, 0 dialing); 6 accepted;" in status(relay)
        clients.pop().close()
        assert late.recv(8, socket.MSG_WAITALL)[:2] == b"\x00\x5a"
        assert echoes(late)
    for client in clients:
        client.close()


class Load:
    """Clients that come at a rate and each say what became of them, until told to stop."""

    def __init__(self, port: int, target: int, every_s: float) -> None:
        self.outcomes: list[str] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._knock, args=(port, target, every_s * 4)) for _ in range(4)
        ]
        for thread in self._threads:
            thread.start()

    def _knock(self, port: int, target: int, every_s: float) -> None:
        # Paced, not synchronised.
        while not self._stop.wait(every_s):
            try:
                with through(port, target) as client:
                    self.outcomes.append("direct" if echoes(client) else "lost: no echo")
            except ConnectionRefusedError as error:
                # The reply of a proxy that refuses, and not a port that nobody listens on.
                self.outcomes.append("deny" if error.errno is None else f"lost: {error}")
            except OSError as error:
                self.outcomes.append(f"lost: {error}")

    def come(self, more: int) -> None:
        """Waits for so many clients more."""
        due = len(self.outcomes) + more
        until(lambda: len(self.outcomes) >= due, f"{more} clients more")

    def end(self) -> list[str]:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)
        return self.outcomes


def test_reloads_under_load_lose_nobody_and_no_decision_is_of_an_old_policy(
    serve: Start,
    listener: socket.socket,
    echo: Echo,
    tmp_path: Path,
) -> None:
    log = tmp_path / "access.jsonl"
    texts = {
        "direct": SOCKS + direct(echo.port),
        "deny": SOCKS + f"match 127.0.0.1 port {echo.port} -> deny\n",
    }
    relay = serve(texts["direct"], "--access-log", str(log))
    port = port_of(listener)
    digests = {"direct": re.search(r"policy ([0-9a-f]+)", relay.said[-1])[1]}  # type: ignore[index]
    load = Load(port, echo.port, 0.005)
    after = 0
    with through(port, echo.port) as old:
        try:
            for outcome in ("deny", "direct") * 3:
                load.come(20)
                relay.reload(texts[outcome], "urelay: reloaded p.urr")
                digests[outcome] = re.search(r"policy ([0-9a-f]+)", relay.said[-1])[1]  # type: ignore[index]
                for _ in range(6):
                    after += 1
                    try:
                        with through(port, echo.port) as client:
                            assert (echoes(client), outcome) == (True, "direct")
                    except ConnectionRefusedError:
                        assert outcome == "deny"
        finally:
            outcomes = load.end()
        assert echoes(old), "who came in six policies ago stays connected"
        until(lambda: len(workers_of(relay)) in (3, 4), "workers with nobody left have ended")
    assert [outcome for outcome in outcomes if outcome.startswith("lost")] == []
    assert set(outcomes) == {"direct", "deny"}
    until(lambda: len(workers_of(relay)) == 2, "the last connection of the first workers has ended")
    assert (
        f"status: 0 connections (0 handshaking, 0 dialing); {len(outcomes) + after + 1} accepted;"
        in status(relay)
    )
    relay.process.terminate()
    assert relay.end() == 0
    entries = entries_of(log)
    assert len(entries) == len({entry["id"] for entry in entries}) == len(outcomes) + after + 1
    for entry in entries:
        assert str(entry["policy"]).startswith(digests[str(entry["outcome"])]), entry


def test_of_many_old_policies_the_oldest_gets_no_more_time_than_a_stop_would_give(
    serve: Start, listener: socket.socket, echo: Echo
) -> None:
    relay = serve(SOCKS + direct(echo.port), "--drain", "0.2")
    clients = []
    for number in range(9):
        clients.append(through(port_of(listener), echo.port))
        relay.reload(SOCKS + direct(echo.port) + f"# {number}\n", "urelay: reloaded p.urr")
    with pytest.raises(ConnectionResetError):
        clients[0].recv(1)
    for client in clients[1:]:
        assert echoes(client)
    for client in clients:
        client.close()


def test_a_reload_that_fails_leaves_every_worker_as_it_was(
    serve: Start,
    listener: socket.socket,
    echo: Echo,
) -> None:
    relay = serve(SOCKS + direct(echo.port))
    before = sorted(workers_of(relay))
    relay.reload(
        SOCKS + "match any -> via nowhere\n", "p.urr was not reloaded: it has errors; policy .* stays"
    )
    relay.reload(
        SOCKS + f"listen busy = socks 127.0.0.1:{echo.port}\n" + direct(echo.port),
        "p.urr was not reloaded: it cannot be served; policy .* stays in force",
    )
    assert any("the port is in use" in line for line in relay.said)
    assert sorted(workers_of(relay)) == before
    with through(port_of(listener), echo.port) as client:
        assert echoes(client)


@pytest.mark.parametrize(
    "restarts", [3, pytest.param(100, marks=(pytest.mark.long, pytest.mark.timeout(600)))]
)
def test_the_whole_is_restarted_on_a_socket_that_stays_and_nobody_is_lost(
    serve: Start, listener: socket.socket, echo: Echo, restarts: int
) -> None:
    text = SOCKS + direct(echo.port)
    relay = serve(text)
    load = Load(port_of(listener), echo.port, 0.005)
    try:
        for number in range(restarts):
            load.come(20)
            if number % 2:
                # One after the other: meanwhile clients wait in the queue.
                relay.process.terminate()
                assert relay.end() == 0
                relay = serve(text)
            else:
                old, relay = relay, serve(text)
                old.process.terminate()
                assert old.end() == 0
        load.come(20)
    finally:
        outcomes = load.end()
    assert set(outcomes) == {"direct"}


def test_stopping_lets_connections_finish_whoever_else_hears_the_signal(
    serve: Start,
    listener: socket.socket,
    echo: Echo,
) -> None:
    relay = serve(SOCKS + direct(echo.port))
    clients = [through(port_of(listener), echo.port) for _ in range(10)]
    workers = workers_of(relay)
    listener.close()
    for pid in (*workers, relay.process.pid):
        os.kill(pid, signal.SIGTERM)
    relay.hear("urelay: stopping: 10 connections may finish for 60 s")
    assert "status: 10 connections" in status(relay)
    for client in clients:
        assert echoes(client)
        client.close()
    assert relay.end() == 0
    assert all(is_gone(pid) for pid in workers)


def test_patience_ends_and_a_second_signal_ends_it_at_once(
    serve: Start,
    listener: socket.socket,
    echo: Echo,
) -> None:
    for patience in ("0.2", "600"):
        relay = serve(SOCKS + direct(echo.port), "--drain", patience)
        with through(port_of(listener), echo.port) as client:
            relay.process.terminate()
            relay.hear("urelay: stopping: 1 connection ")
            if patience == "600":
                relay.process.terminate()
                relay.hear("urelay: asked twice")
            assert relay.end() == 0
            with pytest.raises(ConnectionResetError):
                client.recv(1)


def test_a_supervisor_that_is_killed_leaves_no_worker_behind(
    serve: Start,
    listener: socket.socket,
    echo: Echo,
    tmp_path: Path,
) -> None:
    log = tmp_path / "access.jsonl"
    relay = serve(SOCKS + direct(echo.port), "--access-log", str(log))
    # A second generation beside the first: its workers must be found out too.
    with through(port_of(listener), echo.port) as client:
        relay.reload(SOCKS + direct(echo.port) + "# 2\n", "urelay: reloaded")
        workers = workers_of(relay)
        assert len(workers) in (3, 4)
        relay.process.kill()
        until(lambda: all(is_gone(pid) for pid in workers), "the workers have ended")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert [entry["end"] for entry in entries_of(log)] == ["error"], "even so the log is written"


def test_a_rotated_access_log_goes_on_in_a_new_file_for_every_worker(
    serve: Start,
    listener: socket.socket,
    echo: Echo,
    tmp_path: Path,
) -> None:
    log = tmp_path / "access.jsonl"
    moved = tmp_path / "moved.jsonl"
    relay = serve(SOCKS + direct(echo.port), "--access-log", str(log))
    until(log.exists, "there is a log")
    log.rename(moved)
    relay.process.send_signal(signal.SIGUSR1)
    until(log.exists, "there is a new log")
    files = [f"/proc/{pid}/fd" for pid in workers_of(relay)]

    def open_in(folder: str) -> set[str]:
        return {os.readlink(entry.path) for entry in os.scandir(folder)}

    until(lambda: all(str(log) in open_in(folder) for folder in files), "every worker writes to it")
    assert not any(str(moved) in open_in(folder) for folder in files)


def test_lines_of_all_workers_arrive_whole_at_a_pipe(
    serve: Start,
    listener: socket.socket,
    echo: Echo,
) -> None:
    text = SOCKS + direct(echo.port).replace("direct", "direct with log full")
    relay = serve(text, "--access-log", "-", stdout=subprocess.PIPE)
    load = Load(port_of(listener), echo.port, 0.001)
    load.come(200)
    made = len(load.end())
    relay.process.terminate()
    assert relay.process.stdout is not None
    lines = relay.process.stdout.read().splitlines()
    relay.process.stdout.close()
    assert relay.end() == 0
    assert len({json.loads(line)["id"] for line in lines}) == len(lines) == made


def test_a_total_of_connections_is_divided_among_workers() -> None:
    for total, workers in ((10, 3), (4, 4), (1000, 7)):
        options = Options(max_connections=total, workers=workers)
        shares = [options.limits(number).max_connections for number in range(workers)]
        assert sum(shares) == total
        assert max(shares) - min(shares) <= 1
    whole = Options().limits()
    assert Options(workers=4).limits(2) == whole, "each process has a limit of descriptors of its own"


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        ("listen a = socks fd 77\n", (), "descriptor 77 was not handed"),
        ("match any -> deny\n", ("--access-log", "/no/such/log"), "cannot write the access log"),
        ("match any -> deny\n", ("--max-connections", "2"), "2 is less than one for each worker"),
    ],
    ids=["descriptor", "log", "connections"],
)
def test_what_cannot_start_says_why_and_leaves_nothing_open(
    text: str,
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.urr").write_text(text)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)]
    before = set(os.listdir("/proc/self/fd"))
    assert main(["serve", "p.urr", "--workers", "3", *arguments]) == 2
    heard = capfd.readouterr().err
    assert said in heard
    assert "Traceback" not in heard
    assert set(os.listdir("/proc/self/fd")) == before
    assert [
        signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
    ] == handlers


@pytest.mark.long
def test_a_worker_that_hangs_is_killed_and_the_reload_goes_on(
    serve: Start,
    listener: socket.socket,
    echo: Echo,
) -> None:
    relay = serve(SOCKS + direct(echo.port))
    victim = workers_of(relay)[0]
    os.kill(victim, signal.SIGSTOP)
    relay.reload(
        SOCKS + direct(echo.port) + "# 2\n", rf"error: worker \d \(process {victim}\) hangs: it is killed"
    )
    relay.hear("urelay: reloaded")
    until(lambda: is_gone(victim), "the worker is gone")
    for _ in range(20):
        with through(port_of(listener), echo.port) as client:
            assert echoes(client)

"""`urelay serve` starts whole or not at all, reloads without harm, and ends without cutting anybody off."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.services.rig import SERVING, Echo, direct, echoes, socks, through
from urelay.cli.main import main

_given: set[int] = set()


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on, another one at each call."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = int(server.getsockname()[1])
        if port not in _given:
            _given.add(port)
            return port


def is_open(port: int) -> bool:
    """Whether something listens there; a connection that met itself found nobody."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0 and client.getsockname()[1] != port


def test_it_says_so_when_everything_listens_and_relays(start, echo: Echo) -> None:
    one, two = free_port(), free_port()
    relay = start(socks(one) + socks(two, "more") + direct(echo.port))
    line = relay.said[-1]
    match = SERVING.fullmatch(line)
    assert match is not None
    assert match["path"] == "p.urr"
    assert line.endswith(f"1 route): socks socks 127.0.0.1:{one}, more socks 127.0.0.1:{two}")
    for port in (one, two):
        with through(port, echo.port) as client:
            assert echoes(client)


def test_a_reload_changes_new_connections_and_leaves_old_ones_alone(start, echo: Echo) -> None:
    port = free_port()
    relay = start(socks(port) + direct(echo.port))
    with through(port, echo.port) as old:
        relay.reload(socks(port), "urelay: reloaded p.urr")
        with pytest.raises(ConnectionRefusedError):
            through(port, echo.port)
        assert echoes(old)
        relay.reload(socks(port) + direct(echo.port), "urelay: reloaded p.urr")
        with through(port, echo.port) as new:
            assert echoes(new)
        assert echoes(old)


def test_a_policy_with_errors_leaves_the_old_one_running_and_says_why(start, echo: Echo) -> None:
    port = free_port()
    relay = start(socks(port) + direct(echo.port))
    digest = SERVING.fullmatch(relay.said[-1])["digest"]
    relay.reload(
        socks(port) + "match any -> via nowhere\n",
        f"urelay: error: p.urr was not reloaded: .*; policy {digest} stays in force",
    )
    assert any(line.startswith("error[UR101]") for line in relay.said)
    assert any("--> p.urr:2:" in line for line in relay.said)
    with through(port, echo.port) as client:
        assert echoes(client)
    relay.policy.unlink()
    relay.process.send_signal(signal.SIGHUP)
    relay.hear("was not reloaded", len(relay.said) - 1)


def test_a_new_listener_that_cannot_be_bound_leaves_everything_as_it_was(start, echo: Echo) -> None:
    port, fresh = free_port(), free_port()
    relay = start(socks(port) + direct(echo.port))
    relay.reload(
        socks(fresh, "fresh") + socks(echo.port, "busy"),
        "p.urr was not reloaded: it cannot be served",
    )
    assert any(f"cannot listen on 127.0.0.1:{echo.port}: the port is in use" in line for line in relay.said)
    assert not is_open(fresh)
    with through(port, echo.port) as client:
        assert echoes(client)


def test_listeners_come_and_go_with_a_reload(start, echo: Echo) -> None:
    kept, gone, fresh = free_port(), free_port(), free_port()
    relay = start(socks(kept, "kept") + socks(gone, "gone") + direct(echo.port))
    with through(gone, echo.port) as old:
        relay.reload(socks(kept, "renamed") + socks(fresh, "fresh") + direct(echo.port), "reloaded p.urr")
        assert not is_open(gone)
        assert echoes(old), "who came in by it before stays connected"
        for port in (kept, fresh):
            with through(port, echo.port) as client:
                assert echoes(client)


def test_twenty_reloads_in_a_row_lose_no_client(start, echo: Echo, tmp_path: Path) -> None:
    port = free_port()
    log = tmp_path / "access.jsonl"
    relay = start(socks(port) + direct(echo.port), "--access-log", str(log))
    stop = threading.Event()
    counts = {"fine": 0}
    errors: list[Exception] = []

    def knock() -> None:
        while not stop.is_set():
            try:
                with through(port, echo.port) as client:
                    assert echoes(client)
                counts["fine"] += 1
            except Exception as error:
                errors.append(error)
                return

    knocking = threading.Thread(target=knock)
    knocking.start()
    digests = set()
    for number in range(20):
        relay.reload(socks(port) + direct(echo.port) + f"# {number}\n", "urelay: reloaded p.urr")
        digests.add(re.search(r"policy ([0-9a-f]+)", relay.said[-1])[1])
    stop.set()
    knocking.join(20)
    assert not errors
    relay.process.terminate()
    assert relay.end() == 0
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(entries) == counts["fine"] > 20
    assert len(digests) == 20
    assert len({entry["policy"] for entry in entries}) > 2


def test_a_rotated_access_log_goes_on_in_a_new_file(start, echo: Echo, tmp_path: Path) -> None:
    port = free_port()
    log = tmp_path / "access.jsonl"
    relay = start(socks(port) + direct(echo.port), "--access-log", str(log))

    def lines_of(path: Path, number: int) -> None:
        with through(port, echo.port) as client:
            assert echoes(client)
        deadline = time.monotonic() + 10
        while not path.exists() or len(path.read_text().splitlines()) != number:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    lines_of(log, 1)
    log.rename(tmp_path / "moved.jsonl")
    relay.process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + 10
    while not log.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lines_of(log, 1)
    relay.process.terminate()
    assert relay.end() == 0
    assert len((tmp_path / "moved.jsonl").read_text().splitlines()) == 1


def test_the_access_log_can_be_standard_output(start, echo: Echo) -> None:
    port = free_port()
    relay = start(
        socks(port) + direct(echo.port).replace("direct", "direct with tag web"),
        "--access-log", "-", stdout=subprocess.PIPE,
    )  # fmt: skip
    with through(port, echo.port) as client:
        assert echoes(client)
    entry = json.loads(relay.process.stdout.readline())
    relay.process.stdout.close()
    assert (entry["listener"], entry["port"], entry["outcome"]) == ("socks", echo.port, "direct")
    assert (entry["route"], entry["tag"], entry["bytes_up"], entry["bytes_down"]) == ("p.urr:2", "web", 5, 5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_lets_connections_finish(start, echo: Echo, number: signal.Signals) -> None:
    port = free_port()
    relay = start(socks(port) + direct(echo.port))
    with through(port, echo.port) as client:
        relay.process.send_signal(number)
        relay.hear("urelay: stopping")
        assert not is_open(port)
        assert echoes(client)
    assert relay.end() == 0


def test_patience_ends(start, echo: Echo) -> None:
    port = free_port()
    relay = start(socks(port) + direct(echo.port), "--drain", "0.2")
    with through(port, echo.port) as client:
        relay.process.terminate()
        assert relay.end() == 0
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_second_signal_ends_it_at_once(start, echo: Echo) -> None:
    port = free_port()
    relay = start(socks(port) + direct(echo.port), "--drain", "600")
    with through(port, echo.port) as client:
        relay.process.terminate()
        relay.hear("urelay: stopping")
        relay.process.terminate()
        assert relay.end() == 0
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_the_service_manager_is_told(start, tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    port = free_port()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(20)
        relay = start(socks(port), env={"NOTIFY_SOCKET": path})
        assert manager.recv(4096).startswith(b"READY=1\nSTATUS=serving p.urr")
        relay.reload(socks(port) + direct(1), "reloaded")
        assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", manager.recv(4096))
        assert manager.recv(4096).startswith(b"READY=1\n")
        relay.reload("match\n", "was not reloaded")
        assert manager.recv(4096).startswith(b"RELOADING=1\n")
        assert manager.recv(4096).startswith(b"READY=1\n"), "a reload that fails ends too"
        relay.process.terminate()
        assert manager.recv(4096).startswith(b"STOPPING=1\n")
        assert relay.end() == 0


@pytest.mark.parametrize(
    ("text", "arguments", "status", "said"),
    [
        pytest.param("match any -> dirct\n", (), 1, r"error\[UR001\]", id="policy error"),
        pytest.param(
            "{good}dns d = 127.0.0.1:53 {{ forward 9.9.9.9:53 }}\n", (), 2, r"error\[UR405\]", id="unserved"
        ),
        pytest.param(
            "{good}listen b = socks 192.0.2.1:1\n", (), 2, "p.urr:2: listener `b`: cannot listen", id="bind"
        ),
        pytest.param(
            "{good}listen b = socks fd env NOBODY\n", (), 2, "variable `NOBODY` is not set", id="variable"
        ),
        pytest.param(
            "{good}listen b = socks fd 77\n", (), 2, "descriptor 77 was not handed", id="descriptor"
        ),
        pytest.param(
            "{good}listen b = transparent [::]:1 {{ netns far }}\n", (), 2,
            "p.urr:2: listener `b`: there is no network namespace called `far`", id="namespace",
        ),
        pytest.param(
            '{good}listen b = socks 127.0.0.1:1 {{ users "none.txt" }}\n', (), 2,
            "p.urr:2: listener `b`: .*none.txt", id="users",
        ),
        pytest.param(
            "{good}upstream u = socks5 127.0.0.1:9 {{ login env NOBODY }}\nmatch any -> via u\n", (), 2,
            "upstream `u`: .*NOBODY", id="login",
        ),
        pytest.param("{good}", ("--access-log", "/no/such/log"), 2, "cannot write the access log", id="log"),
        pytest.param("{good}", ("--resolver", "dns.example:53"), 2, "is a name; a resolver", id="resolver"),
    ],
)  # fmt: skip
def test_what_cannot_start_says_why_and_leaves_nothing_bound(
    text: str,
    arguments: tuple[str, ...],
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    port = free_port()
    monkeypatch.chdir(tmp_path)
    Path("p.urr").write_text(text.format(good=socks(port, "good")))
    before = set(os.listdir("/proc/self/fd"))
    assert main(["serve", "p.urr", *arguments]) == status
    heard = capfd.readouterr().err
    assert re.search(said, heard), heard
    assert "Traceback" not in heard
    assert "urelay: serving" not in heard
    assert not is_open(port)
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_missing_policy_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "none.urr"]) == 2
    [line] = capfd.readouterr().err.splitlines()
    assert "UR401" in line
    assert "none.urr" in line


def test_an_inherited_socket_is_served(start, echo: Echo) -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        port = given.getsockname()[1]
        number = given.fileno()
        relay = start(
            "listen box = socks fd env CTRTOOL_NS_OPEN_FILE_FD_1\n" + direct(echo.port),
            env={"CTRTOOL_NS_OPEN_FILE_FD_1": str(number)}, pass_fds=(number,),
        )  # fmt: skip
    assert f"box socks 127.0.0.1:{port}" in relay.said[-1]
    with through(port, echo.port) as client:
        assert echoes(client)
    relay.reload(f"listen same = socks fd {number}\n" + direct(echo.port), "was not reloaded")
    relay.reload(
        "listen other = socks fd env CTRTOOL_NS_OPEN_FILE_FD_1\n" + direct(echo.port), "urelay: reloaded"
    )
    with through(port, echo.port) as client:
        assert echoes(client)


def test_it_says_what_it_has_relayed_when_asked(start, echo: Echo) -> None:
    port = free_port()
    relay = start(socks(port) + direct(echo.port))
    with through(port, echo.port) as client:
        assert echoes(client)
        relay.process.send_signal(signal.SIGUSR2)
        relay.hear(r"urelay: status: 1 connection \(0 handshaking, 0 dialing\); 1 accepted; 0 ended;")
    relay.process.terminate()
    assert relay.end() == 0

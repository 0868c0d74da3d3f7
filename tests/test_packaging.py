"""The wheel, installed into an empty environment and run from another folder, checks and serves.

The dependencies come from the package index. Where that cannot be reached the tests that need them
are skipped; what is inside the wheel is looked at all the same.
"""

from __future__ import annotations

import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.places import HERE, own_port

ROOT = Path(__file__).resolve().parent.parent
BODY = b"x" * 100_000


def run(*command: str | Path, timeout: float = 240, **options: object) -> subprocess.CompletedProcess[str]:
    """A program's whole run, with its output."""
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=timeout, **options
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    built = run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        ROOT,
    )
    assert built.returncode == 0, built.stderr
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that holds the wheel and what it depends on, and nothing else."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    made = run(sys.executable, "-m", "venv", "--without-pip", folder)
    assert made.returncode == 0, made.stderr
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin/python")
    pip += ("--disable-pip-version-check", "--retries", "1")
    installed = run(*pip, "install", "--quiet", "--no-compile", wheel)
    if installed.returncode != 0:
        # A wheel with wrong metadata must fail here; a machine without an index must not.
        probe = run(*pip, "download", "--quiet", "--no-deps", "-d", folder, "lark")
        if probe.returncode != 0:
            pytest.skip("the package index cannot be reached")
    assert installed.returncode == 0, installed.stderr
    return folder / "bin"


@pytest.fixture
def web() -> Iterator[int]:
    """The port of a web server on loopback that answers everything with BODY."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_wheel_holds_the_language_the_policies_and_nothing_of_the_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert "urelay/py.typed" in names
    assert "urelay/_data/grammar/urr.lark" in names
    for policy in (ROOT / "rules").rglob("*.urr"):
        assert f"urelay/_data/rules/{policy.relative_to(ROOT / 'rules')}" in names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"urelay"}


def test_it_checks_the_policies_that_ship(environment: Path, tmp_path: Path) -> None:
    where = run(
        environment / "python", "-c",
        "from urelay.resources import resource_dir; print(resource_dir('rules'))",
        cwd=tmp_path,
    )  # fmt: skip
    rules = Path(where.stdout.strip())
    assert environment.parent in rules.parents, where.stderr
    done = run(environment / "urelay", "check", rules / "quickstart.urr", rules / "site.urr", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.peer("curl")
def test_it_serves(environment: Path, tmp_path: Path, web: int) -> None:
    port = own_port()
    policy = tmp_path / "mine.urr"
    policy.write_text(
        f"listen proxy = mixed {HERE}:{port}\nmatch 127.0.0.1 port {web} -> direct\n", encoding="utf-8"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with subprocess.Popen(
        [environment / "urelay", "serve", policy], cwd=tmp_path, env=clean, stderr=subprocess.PIPE, text=True
    ) as relay:
        try:
            assert relay.stderr is not None
            line = relay.stderr.readline()
            assert line.startswith(f"urelay: serving {policy} (policy "), line
            for way in ("socks5", "http"):
                proxy = ("--proxytunnel", "--proxy", f"{way}://{HERE}:{port}")
                page = subprocess.run(
                    ["curl", "-sS", *proxy, f"http://127.0.0.1:{web}/"], capture_output=True, timeout=30
                )
                assert page.stdout == BODY, page.stderr
            relay.send_signal(signal.SIGTERM)
            said = relay.stderr.read()
            assert relay.wait(30) == 0, said
            assert "Traceback" not in said
        finally:
            relay.kill()


def test_python_programs_import_it(environment: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "rules/quickstart.urr", tmp_path / "mine.urr")
    script = (
        "import sys, urelay\n"
        "assert not [name for name in sys.modules if name.startswith('urelay.')]\n"
        "policy = urelay.load('mine.urr')\n"
        "print(urelay.__version__, policy.decide('127.0.0.1', 22).outcome)\n"
    )
    done = run(environment / "python", "-c", script, cwd=tmp_path)
    assert done.stdout == "0.1.0 deny\n", done.stderr

"""Real programs as the relay's neighbours: sshd and `ssh -D`, dante, tinyproxy, nginx, HAProxy."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import subprocess
import textwrap
from collections.abc import Sequence
from pathlib import Path

from tests.e2e.rig import Namespace, Program

_SSHD_RUN = Path("/run/sshd")


def find(name: str) -> str | None:
    """Where a program is, also in the system's folders that a user's PATH may lack."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin")


class SshServer:
    """A real sshd with its own keys and configuration; `client` reaches out through it."""

    def __init__(self, folder: Path, netns: Namespace, address: str, port: int = 2222) -> None:
        self.folder = folder / "ssh"
        self.folder.mkdir()
        self.netns = netns
        self.address = address
        self.port = port
        for key in ("host", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / key)], check=True
            )
        (self.folder / "authorized").write_bytes((self.folder / "user.pub").read_bytes())
        (self.folder / "known").write_text(
            f"[{address}]:{port} " + (self.folder / "host.pub").read_text(), encoding="ascii"
        )
        config = self.folder / "sshd_config"
        config.write_text(
            f"ListenAddress {address}\nPort {port}\nHostKey {self.folder}/host\n"
            f"AuthorizedKeysFile {self.folder}/authorized\nPidFile none\nUsePAM no\nStrictModes no\n"
            "PermitRootLogin yes\nPasswordAuthentication no\nAllowTcpForwarding yes\nMaxStartups 100\n"
            "UseDNS no\n"
        )
        # sshd insists on its folder; on a machine where it never ran, it is made and taken away.
        self._made_run = not _SSHD_RUN.exists()
        if self._made_run:
            _SSHD_RUN.mkdir(mode=0o755)
        # sshd starts itself again for every connection, so it wants its whole path.
        sshd = find("sshd")
        assert sshd is not None
        self._programs = [Program([sshd, "-D", "-e", "-f", str(config)], netns)]
        self._programs[0].wait_line("Server listening")

    def client(self, netns: Namespace, *forwards: str) -> Program:
        """`ssh -N FORWARDS…` in `netns`, e.g. `-D`, `127.0.0.1:1080`; ends with the server."""
        options = (
            "BatchMode=yes",
            f"UserKnownHostsFile={self.folder}/known",
            f"IdentityFile={self.folder}/user",
            "IdentitiesOnly=yes",
            "ExitOnForwardFailure=yes",
            "LogLevel=ERROR",
        )
        words = [word for option in options for word in ("-o", option)]
        target = f"{getpass.getuser()}@{self.address}"
        program = Program(["ssh", "-F", "none", "-N", *words, "-p", str(self.port), *forwards, target], netns)
        self._programs.append(program)
        return program

    def socks(self, netns: Namespace, port: int = 1085) -> int:
        """`ssh -D` on loopback in `netns`, ready; its port."""
        self.client(netns, "-D", f"127.0.0.1:{port}").wait_listening(port)
        return port

    def close(self) -> None:
        """Ends the clients, then the server."""
        while self._programs:
            self._programs.pop().stop()
        if self._made_run:
            # Another run beside this one may have taken it away, or put something into it.
            with contextlib.suppress(OSError):
                _SSHD_RUN.rmdir()


def dante(folder: Path, netns: Namespace, listen: str, port: int, device: str) -> Program:
    """A real dante SOCKS server (4 and 5, no login) in `netns`, going out by `device`."""
    config = folder / f"dante-{netns.label}.conf"
    config.write_text(
        f"logoutput: stderr\ninternal: {listen} port = {port}\nexternal: {device}\n"
        "socksmethod: none\nclientmethod: none\nuser.privileged: root\nuser.unprivileged: nobody\n"
        "client pass { from: 0/0 to: 0/0 }\nsocks pass { from: 0/0 to: 0/0 }\n"
    )
    program = Program([find("danted") or "sockd", "-f", str(config), "-N", "1"], netns)
    program.wait_listening(port)
    return program


def tinyproxy(folder: Path, netns: Namespace, listen: str, port: int, login: str = "") -> Program:
    """A real HTTP proxy in `netns`; `login` is `user password` where it asks for one."""
    config = folder / f"tinyproxy-{netns.label}.conf"
    config.write_text(
        f"User root\nGroup root\nPort {port}\nListen {listen}\nTimeout 30\nMaxClients 50\n"
        "LogLevel Warning\n" + (f"BasicAuth {login}\n" if login else "")
    )
    program = Program([find("tinyproxy") or "tinyproxy", "-d", "-c", str(config)], netns)
    program.wait_listening(port)
    return program


def nginx(folder: Path, *paths: str) -> Program:
    """A real nginx that listens on unix sockets; each answers with its own path and the URI asked for."""
    servers = "".join(
        f'server {{ listen "unix:{path}"; default_type text/plain;\n'
        f'location / {{ return 200 "{path} $uri"; }} }}\n'
        for path in paths
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr warn;\n"
        "events { worker_connections 64; }\n"
        f"http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n"
        f"fastcgi_temp_path {folder}/fcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n"
        f"{servers}}}\n"
    )
    binary = find("nginx")
    assert binary is not None
    return Program([binary, "-c", str(config), "-p", str(folder), "-e", "stderr"])


def haproxy(
    folder: Path, netns: Namespace, sections: str, *ports: int, pass_fds: Sequence[int] = ()
) -> Program:
    """A real HAProxy in TCP mode with these sections, ready on `ports`."""
    config = folder / "haproxy.cfg"
    config.write_text(
        "global\n    maxconn 100\n    nbthread 1\n    stats timeout 5s\n"
        "defaults\n    mode tcp\n    timeout connect 20s\n    timeout client 30s\n    timeout server 30s\n"
        + textwrap.dedent(sections)
    )
    binary = find("haproxy")
    assert binary is not None
    program = Program([binary, "-db", "-f", str(config)], netns, pass_fds=pass_fds)
    for port in ports:
        program.wait_listening(port)
    return program

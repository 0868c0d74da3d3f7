"""The programs of the family urelay comes from, started as its neighbours.

They are looked for in the folder that URELAY_ORIGIN_DIR names; `pytest.mark.origin` skips a test whose
program is not there.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack

from tests.e2e import peers
from tests.e2e.rig import Namespace, Network, Program

SERVER = "203.0.113.10"
"""Where the web server of `web_box` is, at port 80."""


def web_box(net: Network, stack: ExitStack) -> Namespace:
    """A namespace with a web server, named `server`, at SERVER."""
    made = net.namespace("box")
    made.address("lo", f"{SERVER}/32")
    stack.enter_context(peers.Server(made.listen(SERVER, 80), peers.web("server")))
    return made


def get(sock: socket.socket) -> bytes:
    """What a web server at the other end is named."""
    with sock:
        sock.settimeout(20)
        sock.sendall(b"GET /name HTTP/1.0\r\n\r\n")
        return peers.drain(sock).partition(b"\r\n\r\n")[2]


def run(stack: ExitStack, netns: Namespace, *argv: object, **options: object) -> Program:
    """Starts a program in a namespace; it ends with `stack`."""
    program = Program([str(word) for word in argv], netns, **options)  # type: ignore[arg-type]
    stack.callback(program.stop)
    return program

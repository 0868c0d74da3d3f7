"""TLS to a proxy or to a destination: who is trusted, the handshake, and then a bridge.

Certificates are verified against the name that was dialled, always, unless the upstream says
`insecure`. The name is the one the policy gives (`server-name`), else the one that was asked for, else
the address itself, which then must be in the certificate. Versions before TLS 1.2 are refused, and so is
renegotiation.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

from urelay.engine.bridge import bridge
from urelay.engine.connect import failure_of, words
from urelay.errors import Blame, DialError, Failure, StartError
from urelay.net.address import printable
from urelay.policy.model import Policy, Upstream

_BURST = 1 << 16


@dataclass(frozen=True, slots=True)
class Tls:
    """How one upstream speaks TLS."""

    context: ssl.SSLContext
    server_name: str | None = None

    async def start(
        self, sock: socket.socket, name: str, timeout_s: float, early: bytes = b""
    ) -> socket.socket:
        """A socket that leads through TLS over `sock` to the server, which has shown to be `name`.

        An empty name is for servers that have none and need not show who they are; `early` was read of
        `sock` already. Raises DialError.
        `sock` belongs to the new socket then, and stays the caller's when this raises.
        """
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        incoming.write(early)
        try:
            tls = self.context.wrap_bio(incoming, outgoing, server_hostname=self.server_name or name or None)
            async with asyncio.timeout(timeout_s):
                await _shake_hands(sock, tls, incoming, outgoing)
            return bridge(sock, tls, incoming, outgoing)
        except TimeoutError:
            raise DialError(Failure.TIMEOUT, f"TLS: no answer in {timeout_s:g} s", Blame.UNCLEAR) from None
        except ssl.SSLCertVerificationError as error:
            text = error.verify_message or "it is not valid"
            raise DialError(Failure.ERROR, f"TLS: its certificate: {_lowered(text)}") from None
        except ssl.SSLError as error:
            reason = (error.reason or "it does not speak TLS").replace("_", " ").lower()
            raise DialError(Failure.ERROR, f"TLS: {reason}") from None
        except OSError as error:
            raise DialError(failure_of(error), f"TLS: {words(error)}") from None
        except ValueError:
            # Host names that no certificate can hold, such as one with a label that is no IDNA.
            raise DialError(Failure.ERROR, f"TLS: `{printable(name)}` is no name to verify") from None


def read_trust(policy: Policy) -> Mapping[str, Tls]:
    """How every upstream that says `tls` speaks it, by name.

    Raises StartError with every `ca` file that is missing or holds no certificates.
    """
    found: dict[str, Tls] = {}
    wrong: list[str] = []
    for upstream in policy.upstreams.values():
        if upstream.tls:
            try:
                found[upstream.name] = Tls(_context(upstream), upstream.server_name)
            except StartError as error:
                wrong.append(f"{upstream.origin}: upstream `{upstream.name}`: {error}")
    if wrong:
        raise StartError(*wrong)
    return found


def _context(upstream: Upstream) -> ssl.SSLContext:
    path = upstream.ca_file
    try:
        context = ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        raise StartError(f"{path} holds no certificates (PEM)") from None
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise StartError(f"cannot read the certificates in {path}: {reason}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    if upstream.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def _shake_hands(
    sock: socket.socket, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
) -> None:
    """OpenSSL bounds what a handshake may hold, so this needs no bound but the time."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            await loop.sock_sendall(sock, outgoing.read())
        except ssl.SSLError:
            # The server is owed the alert that tells why; whether it hears it is all the same.
            await loop.sock_sendall(sock, outgoing.read())
            raise
        else:
            await loop.sock_sendall(sock, outgoing.read())
            return
        data = await loop.sock_recv(sock, _BURST)
        if not data:
            raise DialError(Failure.ERROR, "TLS: the connection was closed during the handshake")
        incoming.write(data)


def _lowered(text: str) -> str:
    # "IP address mismatch" stays as it is.
    shown = text.rstrip(".")
    return shown[:1].lower() + shown[1:] if shown[1:2].islower() else shown

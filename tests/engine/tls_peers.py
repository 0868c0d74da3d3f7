"""Certificates made by `openssl`, and a TLS server that can do what polite ones never do."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
from pathlib import Path

from tests.engine.rig import reset


class Authority:
    """A certificate authority in a folder, and what it has signed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificate = folder / "ca.pem"
        self._key = folder / "ca.key"
        _openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-subj", "/CN=test authority", "-days", "2", "-addext", "keyUsage=critical,keyCertSign",
            "-keyout", self._key, "-out", self.certificate,
        )  # fmt: skip

    def sign(self, *names: str) -> Path:
        """A file with the key and the certificate of a server with these names (`DNS:x`, `IP:y`)."""
        stem = self.folder / names[0].replace(":", "-")
        pem = stem.with_name(stem.name + ".pem")
        if not pem.exists():
            key, request, certificate, extensions = (
                stem.with_name(stem.name + suffix) for suffix in (".key", ".csr", ".crt", ".ext")
            )
            # The key identifiers are asked for by Python 3.13, which is strict by default.
            extensions.write_text(
                f"subjectAltName={','.join(names)}\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
            )
            _openssl(
                "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                "-subj", "/CN=server", "-keyout", key, "-out", request,
            )  # fmt: skip
            _openssl(
                "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key,
                "-CAcreateserial", "-days", "2", "-extfile", extensions, "-out", certificate,
            )  # fmt: skip
            pem.write_bytes(key.read_bytes() + certificate.read_bytes())
        return pem

    def server(self, *names: str, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """How a server with these names speaks TLS."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.sign(*names))
        if version is not None:
            context.minimum_version = context.maximum_version = version
        return context


class TlsEnd:
    """The server's end of one connection: blocking, and byte by byte under the test's control."""

    def __init__(self, raw: socket.socket, context: ssl.SSLContext) -> None:
        self.raw = raw
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def shake_hands(self, banner: bytes = b"") -> TlsEnd:
        """The handshake; `banner` leaves in the same segment as its last message."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
            else:
                if banner:
                    self._tls.write(banner)
                self._flush()
                return self

    def sendall(self, data: bytes) -> None:
        self._tls.write(data)
        self._flush()

    def recv(self, size: int) -> bytes:
        """Some bytes, or nothing at close_notify; SSLEOFError at an end without it."""
        while True:
            try:
                return self._tls.read(size)
            except ssl.SSLWantReadError:
                self._fill()
            except ssl.SSLZeroReturnError:
                return b""

    def read_all(self) -> bytes:
        """Everything before close_notify."""
        parts = []
        while part := self.recv(1 << 17):
            parts.append(part)
        return b"".join(parts)

    def say_goodbye(self) -> None:
        """close_notify, and go on reading."""
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        self._flush()

    def reset(self) -> None:
        reset(self.raw)

    def _flush(self) -> None:
        self.raw.sendall(self._outgoing.read())

    def _fill(self) -> None:
        data = self.raw.recv(1 << 17)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()


def _openssl(*words: object) -> None:
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

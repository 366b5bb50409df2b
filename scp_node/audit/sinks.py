"""Where audit messages go: a file of ours, and an audit server by syslog (PS3.15 A.6, A.7; RFC 5424)."""

from __future__ import annotations

import os
import socket
import ssl
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

from scp_node.tls import Unusable, client_context

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from scp_node.settings import Settings
    from scp_node.tls import Identity

_PRIORITY: Final = 10 * 8 + 5  # facility security/authorization (10), severity notice (5): PS3.15 A.6
_MESSAGE_ID: Final = "DICOM+RFC3881"
_BOM: Final = b"\xef\xbb\xbf"
_TIMEOUT_S: Final = 10.0


class Sink(Protocol):
    """One place for audit messages."""

    @property
    def name(self) -> str:
        """Under which the ledger keeps how far it has come."""

    def write(self, messages: Sequence[bytes]) -> None:
        """Take messages, all or an :class:`OSError`."""


@dataclass(frozen=True, slots=True)
class FileSink:
    """A file with one message a line, for our user alone; made anew when somebody rotated it away."""

    path: Path

    @property
    def name(self) -> str:
        """As in :class:`Sink`."""
        return "file"

    def write(self, messages: Sequence[bytes]) -> None:
        """Append, durably."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with open(descriptor, "ab") as file:  # noqa: PTH123 - the descriptor carries the mode
            file.write(b"".join(message + b"\n" for message in messages))
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True, slots=True)
class SyslogSink:
    """An audit server.

    Attributes
    ----------
    scheme
        ``udp``: one datagram a message (RFC 5426), nobody says whether it arrives; ``tcp`` and ``tls``: a stream
        of counted messages (RFC 6587 section 3.4.1, RFC 5425).
    identity
        Our certificate and whom we trust, for ``tls``.
    """

    scheme: str
    host: str
    port: int
    identity: Identity | None

    @property
    def name(self) -> str:
        """As in :class:`Sink`."""
        return "syslog"

    def write(self, messages: Sequence[bytes]) -> None:
        """Send."""
        if self.scheme == "udp":
            self._send_datagrams(messages)
        else:
            self._send_stream(messages)

    def _send_datagrams(self, messages: Sequence[bytes]) -> None:
        family, kind, protocol, _, address = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as sender:
            for message in messages:
                sender.sendto(as_syslog(message), address)

    def _send_stream(self, messages: Sequence[bytes]) -> None:
        plain = socket.create_connection((self.host, self.port), timeout=_TIMEOUT_S)
        with closing(plain), closing(self._wrapped(plain)) as stream:
            for message in messages:
                framed = as_syslog(message)
                stream.sendall(f"{len(framed)} ".encode("ascii") + framed)
            _wait_until_read(stream)

    def _wrapped(self, plain: socket.socket) -> socket.socket:
        if self.scheme == "tcp":
            return plain
        if self.identity is None:
            raise OSError("audit.syslog over tls needs certificate, key and ca of [tls]")
        context = client_context(self.identity)
        if isinstance(context, Unusable):
            raise OSError(context.text)
        return context.wrap_socket(plain, server_hostname=self.host)


def _wait_until_read(stream: socket.socket) -> None:
    """Say that this is all, and wait until the server has read it and closes too; a reset is an error."""
    if isinstance(stream, ssl.SSLSocket):
        with suppress(ssl.SSLError):  # servers that close without TLS's good-bye have read all the same
            stream.unwrap()
    else:
        stream.shutdown(socket.SHUT_WR)
        stream.recv(1)


def sinks_of(settings: Settings) -> tuple[Sink, ...]:
    """Give the places that the settings name."""
    audit, found = settings.audit, list[Sink]()
    if audit.file:
        found.append(FileSink(settings.storage.folder / audit.file))
    if audit.syslog:
        place = urlsplit(audit.syslog)
        found.append(SyslogSink(place.scheme, place.hostname or "", place.port or 0, settings.tls.identity))
    return tuple(found)


def as_syslog(message: bytes) -> bytes:
    """Put an audit message into an RFC 5424 frame."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    machine = socket.gethostname()[:255] or "-"
    header = f"<{_PRIORITY}>1 {now} {machine} nodule-node {os.getpid()} {_MESSAGE_ID} - "
    return header.encode("ascii", errors="replace") + _BOM + message

"""Whether a peer is who its AE title says: the address it calls from, and the certificate it shows.

An AE title is a name, not a proof; address and certificate bind it to a machine.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scp_node.tls import certificate_is_for, names_of

if TYPE_CHECKING:
    from scp_node.settings import Sender


@dataclass(frozen=True, slots=True)
class TlsPeer:
    """What a peer showed of itself: nothing without TLS, else its certificate, checked already."""

    certificate: dict[str, Any] | None

    @classmethod
    def of(cls, connection: socket.socket | None) -> TlsPeer:
        """Look at a connection whose handshake, if any, is done."""
        if not isinstance(connection, ssl.SSLSocket):
            return cls(None)
        return cls(dict(connection.getpeercert() or {}))


class HandshakeLater:
    """A TLS context for the library's own server, which would shake hands inside its accept loop.

    There a peer that says nothing keeps everybody out. With this the handshake is done by the first read, in the
    association's thread, under a time limit.
    """

    def __init__(self, context: ssl.SSLContext, limit_s: float) -> None:
        self._context = context
        self._limit_s = limit_s

    def wrap_socket(self, connection: socket.socket, *, server_side: bool) -> ssl.SSLSocket:
        """Wrap a connection without waiting for its peer."""
        connection.settimeout(self._limit_s)
        return self._context.wrap_socket(connection, server_side=server_side, do_handshake_on_connect=False)


def may_call_from(host: str, peer: str) -> bool:
    """Whether a sender's ``host`` allows an address: empty, that address, its network, or a name that has it."""
    if not host:
        return True
    address = _plain(peer)
    try:
        return address in ipaddress.ip_network(host, strict=False)
    except ValueError:
        return any(address == _plain(found) for found in _addresses(host))


def _plain(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Read an address; one of IPv4 that is written as IPv6 (``::ffff:10.0.0.1``) is the same machine."""
    read = ipaddress.ip_address(address.partition("%")[0])
    return getattr(read, "ipv4_mapped", None) or read


def _addresses(host: str) -> frozenset[str]:
    """All addresses of a host name; none when it cannot be resolved."""
    try:
        return frozenset(str(entry[4][0]) for entry in socket.getaddrinfo(host, None))
    except OSError:
        return frozenset()


def tls_fault(sender: Sender, peer: TlsPeer) -> tuple[str, str] | None:
    """Say why a peer may not use this block of ``[[senders]]``, and what to change; ``None`` when it may."""
    title = sender.ae_title
    if sender.tls is True and peer.certificate is None:
        return f"{title} may store over TLS only.", f"Send to tls.port, or set tls of [[senders]] {title}."
    if sender.tls is False and peer.certificate is not None:
        return f"{title} may store without TLS only.", f"Send to node.port, or set tls of [[senders]] {title}."
    if (
        sender.tls_name
        and peer.certificate is not None
        and not certificate_is_for(sender.tls_name, peer.certificate)
    ):
        found = names_of(peer.certificate)
        what = f"Correct tls_name of [[senders]] {title}, or give the sender a certificate with that name."
        return f"The certificate of {title} is for {found}, not for {sender.tls_name}.", what
    return None

"""A peer whose TLS handshake fails is noted once, with its address and the reason, for status and the audit."""

from __future__ import annotations

import socket
from contextlib import suppress

from tests.certificates import authority
from tests.listening import listening
from tests.worker_node import wait_for


def test_a_peer_that_speaks_no_tls_on_the_tls_port_is_noted_once(tmp_path):
    ours = authority(tmp_path).identity("node")
    tls = f'[tls]\nport = 1\ncertificate = "{ours.certificate}"\nkey = "{ours.key}"\nca = "{ours.authorities}"'
    with listening(tmp_path, storage=tls) as node:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", node.listener.tls_port), timeout=60) as peer:
                peer.sendall(b"this is no TLS, and no DICOM either")
                with suppress(ConnectionResetError):
                    while peer.recv(4096):
                        pass
        (event,) = wait_for(node.events)
        assert event.kind == "tls_refused"
        assert event.text.startswith("127.0.0.1 could not open a connection over TLS. ")

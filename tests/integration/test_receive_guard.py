"""Peers that break the protocol, by fault or by intent, against the real listener; short time limits."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import ExitStack, suppress

import pytest
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification
from pynetdicom.presentation import build_context

from scp_node.network.guard import repair_titles
from scp_node.network.library import socket_of
from tests.integration.test_receive_admission import ask
from tests.listening import listening

QUICK = "acse_timeout_s = 0.8\npdu_timeout_s = 1.0\nidle_timeout_s = 20.0"


@pytest.fixture
def node(tmp_path):
    with listening(tmp_path, network=QUICK) as running:
        yield running


def request(calling=b"SENDER          ", called=b"NODULE_NODE     ") -> bytes:
    """An A-ASSOCIATE-RQ with these 16 bytes as titles."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = "X", "Y"
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = 16382
    implementation.implementation_class_uid = "1.2.3"
    primitive.user_information = [length, implementation]
    context = build_context("1.2.840.10008.5.1.4.1.1.2")
    context.context_id = 1
    primitive.presentation_context_definition_list = [context]
    encoded = bytearray(A_ASSOCIATE_RQ(primitive).encode())
    encoded[10:26], encoded[26:42] = called, calling
    return bytes(encoded)


def closed_after(port, *parts: bytes, pause_s=0.0, limit_s=6.0) -> float:
    """Send the parts, then wait for the node to close; gives the seconds it took."""
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.settimeout(limit_s)
        try:
            for part in parts:
                peer.sendall(part)
                time.sleep(pause_s)
            while peer.recv(4096):
                pass
        except (ConnectionError, BrokenPipeError):
            pass
    return time.monotonic() - started


def test_a_silent_connection_is_closed(node):
    assert closed_after(node.port) < 3


def test_half_a_request_is_closed(node):
    assert closed_after(node.port, request()[:40]) < 3


def test_a_request_that_drips_is_closed_by_an_absolute_deadline(node):
    drips = [bytes([b]) for b in request()[:60]]
    assert closed_after(node.port, *drips, pause_s=0.1) < 4


@pytest.mark.parametrize("pdu_type", [0x01, 0x04])
def test_a_pdu_that_claims_two_gib_is_closed_at_once(node, pdu_type):
    assert closed_after(node.port, struct.pack(">BBL", pdu_type, 0, 2**31 - 1)) < 0.7


def test_a_data_pdu_of_two_gib_inside_an_association_is_closed_at_once(node):
    with socket.create_connection(("127.0.0.1", node.port)) as peer:
        peer.settimeout(5)
        peer.sendall(request())
        assert peer.recv(1) == b"\x02"
        started = time.monotonic()
        peer.sendall(struct.pack(">BBL", 0x04, 0, 2**31 - 1) + b"x" * 1000)
        with suppress(ConnectionError):
            while peer.recv(4096):
                pass
        assert time.monotonic() - started < 2


def test_half_a_data_pdu_is_closed(node):
    with socket.create_connection(("127.0.0.1", node.port)) as peer:
        peer.settimeout(5)
        peer.sendall(request())
        assert peer.recv(1) == b"\x02"
        started = time.monotonic()
        peer.sendall(struct.pack(">BBL", 0x04, 0, 1000) + b"x" * 10)
        with suppress(ConnectionError):
            while peer.recv(4096):
                pass
        assert time.monotonic() - started < 3


def test_a_message_over_the_limit_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr("scp_node.network.listener.MESSAGE_MARGIN", 0)
    with (
        listening(tmp_path, network=QUICK + "\nmax_object_mib = 1") as node,
        socket.create_connection(("127.0.0.1", node.port)) as peer,
    ):
        peer.settimeout(5)
        peer.sendall(request())
        assert peer.recv(1) == b"\x02"
        fragment = struct.pack(">BBL", 0x04, 0, 100_006) + struct.pack(">LBB", 100_002, 1, 0x00) + b"x" * 100_000
        with suppress(ConnectionError):
            for _ in range(40):
                peer.sendall(fragment)
                time.sleep(0.005)
            pytest.fail("4 MB were taken")


def test_one_connection_too_many_is_told_so_and_the_log_says_who_and_what_to_change(tmp_path, capsys):
    with listening(tmp_path, network="sockets_per_host = 1\nacse_timeout_s = 120.0") as node, ExitStack() as held:
        address = ("127.0.0.1", node.port)
        first, second = (held.enter_context(socket.create_connection(address, timeout=60)) for _ in range(2))
        first.sendall(request())
        assert first.recv(1) == b"\x02"
        second.sendall(request(calling=b"CT\0\0            "))
        assert second.recv(20) == bytes((3, 0, 0, 0, 0, 4, 0, 2, 3, 2))
        line = next(line for line in capsys.readouterr().out.splitlines() if "association rejected" in line)
        for part in ("2/3/2", "CT", "NODULE_NODE", "127.0.0.1", "raise network.sockets_per_host"):
            assert part in line
        assert node.listener.counters._rejections.labels("2/3/2")._value.get() == 1


def test_http_is_closed_at_once(node):
    assert closed_after(node.port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") < 0.7


def test_garbage_does_not_keep_good_senders_out(tmp_path):
    with listening(tmp_path, node="max_associations = 2", network="acse_timeout_s = 10.0") as node:
        for _ in range(6):
            closed_after(node.port, b"GET / HTTP/1.1\r\n\r\n")
        held = [socket.create_connection(("127.0.0.1", node.port)) for _ in range(6)]
        assert ask(node.port) is None
        for peer in held:
            peer.close()


def test_probes_that_connect_and_close_leave_no_threads(node):
    before = threading.active_count()
    for _ in range(100):
        socket.create_connection(("127.0.0.1", node.port)).close()
    assert ask(node.port) is None  # connections are accepted in turn: the probes were, by now
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before
    assert node.events() == []


def test_connections_that_asked_for_nothing_end_with_the_listener(tmp_path):
    with ExitStack() as peers:
        with listening(tmp_path, network="acse_timeout_s = 30.0") as node:
            for _ in range(5):
                peers.enter_context(socket.create_connection(("127.0.0.1", node.port)))
            assert ask(node.port) is None
            threads = [thread for thread in threading.enumerate() if "run_reactor" in thread.name]
        for thread in threads:
            thread.join(10)
        assert not [thread for thread in threads if thread.is_alive()]


def test_half_open_connections_of_one_host_are_capped(tmp_path):
    with listening(tmp_path, network="acse_timeout_s = 10.0\nhalf_open_per_host = 5") as node:
        held = []
        for _ in range(20):
            held.append(socket.create_connection(("127.0.0.1", node.port)))
            time.sleep(0.03)
        assert sum(_is_closed(peer) for peer in held) >= 14
        for peer in held:
            peer.close()
        deadline = time.monotonic() + 5
        while ask_quietly(node.port) is not None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert ask_quietly(node.port) is None


def ask_quietly(port):
    try:
        return ask(port)
    except (AttributeError, OSError):
        return "closed"


def _is_closed(peer) -> bool:
    peer.settimeout(0.05)
    try:
        return peer.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize(
    ("calling", "called", "answer"),
    [
        (b"SENDER".ljust(16, b"\0"), b"NODULE_NODE".ljust(16, b"\0"), b"\x02"),
        (b"  SENDER".ljust(16), b"NODULE_NODE\0    ", b"\x02"),
        (b" " * 16, b"NODULE_NODE".ljust(16), b"\x03"),
        (b"\0" * 16, b"NODULE_NODE".ljust(16), b"\x03"),
        ("Gerät".encode("latin-1").ljust(16), b"NODULE_NODE".ljust(16), b"\x03"),
        (b"A\\B".ljust(16), b"NODULE_NODE".ljust(16), b"\x03"),
        (b"A\nB".ljust(16), b"NODULE_NODE".ljust(16), b"\x03"),
        (b"SENDER".ljust(16), b"\0" * 16, b"\x03"),
    ],
)
def test_titles_are_repaired_and_then_judged(node, calling, called, answer):
    with socket.create_connection(("127.0.0.1", node.port)) as peer:
        peer.settimeout(5)
        peer.sendall(request(calling, called))
        assert peer.recv(1) == answer


def test_a_blank_calling_title_can_be_allowed_by_name(tmp_path):
    with (
        listening(tmp_path, network=QUICK, senders='[[senders]]\nae_title = "ANONYMOUS"') as node,
        socket.create_connection(("127.0.0.1", node.port)) as peer,
    ):
        peer.settimeout(5)
        peer.sendall(request(b"\0" * 16))
        assert peer.recv(1) == b"\x02"


def test_a_request_too_short_for_titles_is_left_alone():
    request = bytearray(b"\x01\0\0\0\0\x09\0\x01\0\0SHORT")
    repair_titles(request)
    assert request == b"\x01\0\0\0\0\x09\0\x01\0\0SHORT"


def test_connections_are_sent_without_delay(node, monkeypatch):
    from scp_node.network import listener

    seen = []
    original = listener.no_delay

    def spy(event):
        original(event)
        seen.append(socket_of(event).getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(listener, "no_delay", spy)
    assert ask(node.port) is None
    assert seen == [1]

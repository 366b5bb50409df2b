"""One association over its life: stores and echoes in turn, pauses, release, abort, and the end of the listener."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager

import pytest

from tests.builders import ChestSeries, as_bytes
from tests.fuzz.seeds import ECHO, RELEASE, data_pdu, dataset_of, store_command
from tests.integration.test_receive_guard import request
from tests.listening import listening

CT = "1.2.840.10008.5.1.4.1.1.2"
SUCCESS = b"\0\0\0\x09\2\0\0\0\0\0"  # (0000,0900) Status 0x0000
STORED, ECHOED = b"\x01\x80", b"\x30\x80"


@pytest.fixture
def node(tmp_path):
    with listening(tmp_path, network="acse_timeout_s = 60.0") as running:
        yield running


@contextmanager
def associated(port):
    with socket.create_connection(("127.0.0.1", port), timeout=60) as peer:
        peer.sendall(request())
        assert pdu(peer)[:1] == b"\x02"
        yield peer


def pdu(peer) -> bytes:
    """Read one PDU and no more: the next answer may be there already."""
    received = b""
    while (left := (6 if len(received) < 6 else 6 + int.from_bytes(received[2:6], "big")) - len(received)) > 0:
        piece = peer.recv(left)
        if not piece:
            break
        received += piece
    return received


def store(number=0, **how) -> bytes:
    """A C-STORE request of one image, in PDUs."""
    one = ChestSeries(slices=5, rows=32, columns=32).datasets()[number]
    dataset = dataset_of(as_bytes(one))
    step = how.get("step", len(dataset))
    places = range(0, len(dataset), step)
    pieces = [data_pdu(1, 2 if at + step >= len(dataset) else 0, dataset[at : at + step]) for at in places]
    return data_pdu(1, 3, store_command(CT, str(one.SOPInstanceUID))) + b"".join(pieces)


def stored(peer) -> bool:
    answer = pdu(peer)
    return STORED in answer and SUCCESS in answer


def test_stores_and_echoes_in_turn(node):
    with associated(node.port) as peer:
        for number in range(3):
            peer.sendall(store(number, step=200))
            assert stored(peer)
            peer.sendall(data_pdu(1, 3, ECHO))
            answer = pdu(peer)
            assert ECHOED in answer
            assert SUCCESS in answer
        peer.sendall(RELEASE)
        assert pdu(peer)[:1] == b"\x06"
    assert len(node.instances()) == 3


def test_a_message_in_drops_is_put_together(node):
    with associated(node.port) as peer:
        content = store()
        for at in range(0, len(content), 97):
            peer.sendall(content[at : at + 97])
        assert stored(peer)


def test_every_image_winds_the_librarys_idle_timer(node):
    with associated(node.port) as peer:
        peer.sendall(store(0))
        assert stored(peer)
        (association,) = node.listener._admitted
        timer = association.dul._idle_timer
        timer._start_time -= 100  # as if the image had come long ago
        assert timer.remaining < 30
        peer.sendall(store(1))
        assert stored(peer)
        deadline = time.monotonic() + 60
        while timer.remaining < 30 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert timer.remaining > 30
        peer.sendall(RELEASE)
        assert pdu(peer)[:1] == b"\x06"


@pytest.mark.parametrize("before", [b"", data_pdu(1, 3, ECHO), store(), store()[:-300]])
def test_an_idle_association_is_ended_whatever_came_before(tmp_path, before):
    with listening(tmp_path, network="idle_timeout_s = 1.0") as node, associated(node.port) as peer:
        peer.sendall(before)
        while (answer := pdu(peer))[:1] == b"\x04":
            pass
        assert answer[:1] in {b"\x07", b""}  # A-ABORT, or just closed


@pytest.mark.parametrize("end", [RELEASE, b"\x07\0\0\0\0\4\0\0\0\0", b""])
def test_an_image_that_is_cut_off_is_not_stored_and_the_next_sender_is_served(node, end):
    with associated(node.port) as peer:
        peer.sendall(store(step=100)[:-400] + end)
        peer.shutdown(socket.SHUT_WR)
        while peer.recv(65536):
            pass
    assert node.instances() == []
    with associated(node.port) as peer:
        peer.sendall(store())
        assert stored(peer)


def test_two_requests_sent_at_once_are_answered_in_turn(node):
    with associated(node.port) as peer:
        peer.sendall(store(0) + store(1))
        assert stored(peer)
        assert stored(peer)


@pytest.mark.parametrize("extra", [1, 5, 6, 7])
def test_the_beginning_of_the_next_pdu_may_come_together_with_this_one(node, extra):
    with associated(node.port) as peer:
        peer.sendall(store() + store(1)[:extra])
        assert stored(peer)
        peer.sendall(store(1)[extra:] + RELEASE[:extra])
        assert stored(peer)
        peer.sendall(RELEASE[extra:])
        assert pdu(peer)[:1] == b"\x06"
    assert len(node.instances()) == 2


def test_a_request_in_a_context_that_was_not_accepted_is_cut_off(node):
    with associated(node.port) as peer:
        dataset = b"x" * 100
        peer.sendall(data_pdu(9, 3, store_command(CT, "1.2.3")) + data_pdu(9, 2, dataset))
        while (answer := pdu(peer))[:1] == b"\x04":
            pytest.fail("it was answered")
        assert answer[:1] in {b"\x07", b""}
    assert node.instances() == []


def test_senders_at_rest_end_with_the_listener(tmp_path):
    with listening(tmp_path, network="idle_timeout_s = 120.0") as node:
        with associated(node.port) as peer, associated(node.port) as other:
            peer.sendall(store())
            assert stored(peer)
            other.sendall(store(1)[:-300])
            time.sleep(0.3)
            node.listener.stop()
            assert pdu(peer)[:1] in {b"\x07", b""}
        threads = [thread for thread in threading.enumerate() if "run_reactor" in thread.name]
        for thread in threads:
            thread.join(60)
        assert not [thread for thread in threads if thread.is_alive()]


def test_a_sender_at_rest_costs_no_polling(node):
    with associated(node.port) as peer:
        peer.sendall(store())
        assert stored(peer)
        (association,) = node.listener._admitted
        deadline = time.monotonic() + 60
        while association._reactor_checkpoint.is_set() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not association._reactor_checkpoint.is_set()

"""C-STORE requests come out of their fragments as they were; what is anything else is given back untouched."""

from __future__ import annotations

import hashlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO
from pynetdicom.pdu import P_DATA_TF

from scp_node.network.messages import (
    Broken,
    Foreign,
    Messages,
    StoreRequest,
    ends_a_message,
    is_whole,
    store_response,
)
from tests.fuzz.seeds import ECHO, command, data_pdu, store_command

STORE = store_command("1.2.840.10008.5.1.4.1.1.2", "1.2.3.4")
LAST_COMMAND, COMMAND, LAST, MORE = 3, 1, 2, 0


def pdu(*fragments, context_id=1) -> bytearray:
    """One P-DATA PDU of several fragments, each with its control byte."""
    body = b"".join(data_pdu(context_id, control, value)[6:] for control, value in fragments)
    return bytearray(b"\x04\0" + len(body).to_bytes(4, "big") + body)


def fed(*pdus, most=1 << 20):
    messages = Messages(most)
    return [messages.add(one) for one in pdus]


def test_a_request_in_three_pdus():
    *before, last = fed(pdu((LAST_COMMAND, STORE)), pdu((MORE, b"abc")), pdu((LAST, b"de")))
    assert before == [None, None]
    digest = hashlib.sha256(b"abcde").hexdigest()
    assert last == StoreRequest(1, 1, "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4", b"abcde", digest)


def test_command_and_data_set_in_one_pdu():
    (found,) = fed(pdu((LAST_COMMAND, STORE), (MORE, b"abc"), (LAST, b"de")))
    assert found.dataset == b"abcde"


def test_a_command_set_in_pieces():
    *_, found = fed(pdu((COMMAND, STORE[:20])), pdu((LAST_COMMAND, STORE[20:])), pdu((LAST, b"ab")))
    assert found.dataset == b"ab"


def test_one_request_after_another():
    messages = Messages(100)
    for value in (b"aa", b"bb"):
        assert messages.add(pdu((LAST_COMMAND, STORE))) is None
        found = messages.add(pdu((LAST, value)))
        assert (found.dataset, found.sha256) == (value, hashlib.sha256(value).hexdigest())


@given(st.binary(max_size=3000), st.lists(st.integers(1, 700), max_size=8), st.integers(1, 127))
def test_however_it_is_cut_the_data_set_is_the_same(dataset, cuts, context):
    places = sorted({min(sum(cuts[: k + 1]), len(dataset)) for k in range(len(cuts))} | {0})
    ends = [*places[1:], len(dataset)]
    pieces = [dataset[start:end] for start, end in zip(places, ends, strict=True)]
    messages = Messages(1 << 20)
    assert messages.add(pdu((LAST_COMMAND, STORE), context_id=2 * context + 1)) is None
    for piece in pieces[:-1]:
        assert messages.add(pdu((MORE, piece), context_id=2 * context + 1)) is None
    found = messages.add(pdu((LAST, pieces[-1]), context_id=2 * context + 1))
    assert (found.dataset, found.context_id) == (dataset, 2 * context + 1)


@pytest.mark.parametrize(
    "other",
    [
        pdu((LAST_COMMAND, ECHO)),
        pdu((LAST, b"a data set without a command")),
        pdu((LAST_COMMAND, b"no command set")),
        pdu((LAST_COMMAND, command(e0100=b"\1\0", e0110=b"\1\0", e0800=b"\0\0"))),
        pdu((LAST_COMMAND, STORE.replace(b"\0\0\0\x08\2\0\0\0\0\0", b"\0\0\0\x08\2\0\0\0\1\1"))),
        bytearray(b"\x04\0\0\0\0\x08\0\0\0\xff\1\3xx"),
        bytearray(b"\x04\0\0\0\0\x03\0\0\0"),
        pdu((LAST_COMMAND, STORE), (LAST, b"ab"), (LAST, b"cd")),
    ],
    ids=["echo", "no command", "junk", "no instance", "no data set", "too long", "too short", "two messages"],
)
def test_whatever_is_not_plainly_a_store_request_is_given_back(other):
    assert fed(bytearray(other)) == [Foreign(other)]


def test_a_foreign_command_in_pieces_is_given_back_whole():
    one, other = pdu((COMMAND, ECHO[:10])), pdu((LAST_COMMAND, ECHO[10:]))
    assert fed(one, other) == [None, Foreign(one + other)]


def test_a_command_set_that_does_not_end_is_given_back_before_it_fills_the_memory():
    messages = Messages(1 << 20)
    answers = [messages.add(pdu((COMMAND, b"\0" * 8000))) for _ in range(6)]
    assert any(isinstance(answer, Foreign) for answer in answers)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (pdu((LAST, b"ab"), context_id=3), "fragments of two messages mixed"),
        (pdu((LAST_COMMAND, STORE)), "fragments of two messages mixed"),
        (bytearray(b"\x04\0\0\0\0\x08\0\0\0\xff\1\2xx"), "fragments do not fit into their PDU"),
        (pdu((MORE, b"x" * 2000)), "an object larger than this node takes"),
    ],
)
def test_what_breaks_in_the_middle_is_broken(wrong, why):
    assert fed(pdu((LAST_COMMAND, STORE)), wrong, most=1000) == [None, Broken(why)]


def test_the_answer_is_read_by_the_library():
    answer = store_response(StoreRequest(5, 77, "1.2.840", "1.2.3.4", b""), 0xA900, "No.")
    assert is_whole(bytearray(answer))
    assert ends_a_message(bytearray(answer))
    decoded = P_DATA_TF()
    decoded.decode(answer)
    (item,) = decoded.presentation_data_value_items
    assert item.presentation_context_id == 5
    assert item.presentation_data_value[0] == LAST_COMMAND
    read = dcmread(DicomBytesIO(item.presentation_data_value[1:]), force=True)
    assert (read.CommandField, read.MessageIDBeingRespondedTo, read.Status) == (0x8001, 77, 0xA900)
    assert (read.AffectedSOPClassUID, read.AffectedSOPInstanceUID) == ("1.2.840", "1.2.3.4")
    assert (read.ErrorComment, read.CommandDataSetType) == ("No.", 0x0101)
    assert read.CommandGroupLength == len(item.presentation_data_value) - 1 - 12


def test_success_has_no_comment():
    answer = store_response(StoreRequest(1, 1, "1.2", "1.3", b""), 0, "")
    assert b"\0\0\x02\x09" not in answer
    assert io.BytesIO(answer).read(2) == b"\x04\0"


def test_a_pdu_is_whole_when_it_is_as_long_as_it_says():
    whole = pdu((LAST, b"abc"))
    assert is_whole(whole)
    assert not is_whole(whole[:-1])
    assert not is_whole(bytearray())
    assert not ends_a_message(pdu((MORE, b"abc")))

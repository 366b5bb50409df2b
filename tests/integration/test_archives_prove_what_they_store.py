"""Storage commitment and C-FIND over the wire: each way in which an archive answers, or does not."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Timer
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_role, evt

from scp_node.ledger.outbox import Outbox
from scp_node.network.commitment import CommitmentAnswers, ProvingArchive, read_answer
from scp_node.ports import STORAGE_COMMITMENT, STUDY_ROOT_FIND
from scp_node.settings import Destination, load_settings
from tests.delivering import HandClock, MemoryArchive, Post
from tests.listening import listening
from tests.worker_node import wait_for

SR_CLASS = "1.2.840.10008.5.1.4.1.1.88.34"
UID, STUDY, SERIES = "2.25.1", "2.25.2", "2.25.3"
SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
WELL_KNOWN = "1.2.840.10008.1.20.1.1"


@dataclass
class Pacs:
    """An archive that holds ``held``; it answers commitment requests ``now``, on the same association, or later."""

    held: set[str] = field(default_factory=set)
    now: bool = False
    refusal: int = 0
    port: int = 0
    asked: list[Dataset] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)
    looked_for: list[Dataset] = field(default_factory=list)

    def on_action(self, event: Any) -> Any:
        """Take a request; the answer on the same association follows the response to it."""
        self.asked.append(event.action_information)
        if self.now:
            Timer(0.5, self.report_on, [event.assoc]).start()
        return self.refusal, None

    def report_on(self, association: Any) -> None:
        status, _ = association.send_n_event_report(self.answer(self.asked[-1]), 1, STORAGE_COMMITMENT, WELL_KNOWN)
        self.answered.append(status.get("Status"))

    def answer(self, request: Dataset) -> Dataset:
        answer = Dataset()
        answer.TransactionUID = request.TransactionUID
        answer.ReferencedSOPSequence, answer.FailedSOPSequence = [], []
        for item in request.ReferencedSOPSequence:
            if item.ReferencedSOPInstanceUID in self.held:
                answer.ReferencedSOPSequence.append(item)
            else:
                item.FailureReason = 0x0112
                answer.FailedSOPSequence.append(item)
        return answer

    def on_find(self, event: Any) -> Any:
        self.looked_for.append(event.identifier)
        if self.refusal:
            yield self.refusal, None
            return
        if event.identifier.SOPInstanceUID in self.held:
            yield 0xFF00, event.identifier
        yield 0x0000, None

    def call_back(self, port: int, *, scp: bool = True) -> int | None:
        """Answer the last request on an association of ours, as its SCP; gives the status."""
        ae = AE("ARCHIVE")
        ae.acse_timeout = ae.dimse_timeout = 30
        ae.add_requested_context(STORAGE_COMMITMENT, SYNTAXES)
        roles = [build_role(STORAGE_COMMITMENT, scp_role=scp, scu_role=not scp)]
        opened = ae.associate("127.0.0.1", port, ext_neg=roles, ae_title="NODULE_NODE")
        if not opened.is_established:
            return None
        status, _ = opened.send_n_event_report(self.answer(self.asked[-1]), 1, STORAGE_COMMITMENT, WELL_KNOWN)
        opened.release()
        return int(status.Status)


@contextmanager
def pacs(*classes: str, **values: Any):
    archive = Pacs(**values)
    ae = AE("ARCHIVE")
    for uid in classes:
        ae.add_supported_context(uid, SYNTAXES)
    handlers = [
        (evt.EVT_N_ACTION, archive.on_action),
        (evt.EVT_C_FIND, archive.on_find),
    ]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    archive.port = server.server_address[1]
    try:
        yield archive
    finally:
        server.shutdown()


@pytest.fixture
def network(tmp_path):
    (tmp_path / "limits.toml").write_text("[network]\nresponse_timeout_s = 60.0\nconnect_timeout_s = 30.0\n")
    return load_settings(tmp_path / "limits.toml").network


def asker(archive, network, *, wait_s=0.3):
    to = Destination(name="pacs", ae_title="ARCHIVE", host="127.0.0.1", port=archive.port)
    return ProvingArchive(to, "NODULE_NODE", network, wait_s=wait_s)


def test_what_an_archive_offers_is_what_it_accepts(network):
    with pacs(STORAGE_COMMITMENT, SR_CLASS) as archive:
        assert asker(archive, network).accepts((STORAGE_COMMITMENT, STUDY_ROOT_FIND)) == {STORAGE_COMMITMENT}


def test_a_request_names_the_transaction_and_the_instance(network):
    with pacs(STORAGE_COMMITMENT) as archive:
        check = asker(archive, network).commit("2.25.77", SR_CLASS, UID)
    assert (check.kind, check.by) == ("asked", "commitment")
    (request,) = archive.asked
    (item,) = request.ReferencedSOPSequence
    assert request.TransactionUID == "2.25.77"
    assert (item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) == (SR_CLASS, UID)


@pytest.mark.parametrize(("held", "kind"), [({UID}, "proven"), (set(), "missing")])
def test_an_answer_on_the_same_association_is_taken(network, held, kind):
    with pacs(STORAGE_COMMITMENT, held=held, now=True) as archive:
        check = asker(archive, network, wait_s=60.0).commit("2.25.77", SR_CLASS, UID)
        wait_for(lambda: archive.answered, within_s=60)
    assert check.kind == kind, check.text
    assert archive.answered == [0x0000]
    if kind == "missing":
        assert check.text == "The archive does not commit itself to the report: it has no such instance (0x0112)."


@pytest.mark.parametrize("refusal", [0x0110, 0x0122, 0x0213])
def test_a_refused_request_says_so(network, refusal):
    with pacs(STORAGE_COMMITMENT, refusal=refusal) as archive:
        check = asker(archive, network).commit("2.25.77", SR_CLASS, UID)
    assert check.kind == "impossible"
    assert check.text == f"The archive refuses our storage commitment request (0x{refusal:04X})."


def test_an_archive_that_is_gone_is_unreachable_either_way(network):
    with pacs(STORAGE_COMMITMENT) as archive:
        pass
    gone = asker(archive, network)
    assert gone.commit("2.25.77", SR_CLASS, UID).kind == "unreachable"
    assert gone.holds(STUDY, SERIES, UID).kind == "unreachable"


@pytest.mark.parametrize(("held", "kind"), [({UID}, "proven"), (set(), "missing")])
def test_a_query_names_all_levels(network, held, kind):
    with pacs(STUDY_ROOT_FIND, held=held) as archive:
        check = asker(archive, network).holds(STUDY, SERIES, UID)
    assert (check.kind, check.by) == (kind, "query")
    (asked,) = archive.looked_for
    assert (asked.QueryRetrieveLevel, asked.StudyInstanceUID) == ("IMAGE", STUDY)
    assert (asked.SeriesInstanceUID, asked.SOPInstanceUID) == (SERIES, UID)


def test_a_refused_query_is_no_answer(network):
    with pacs(STUDY_ROOT_FIND, refusal=0xA900) as archive:
        assert asker(archive, network).holds(STUDY, SERIES, UID).kind == "impossible"


@pytest.fixture
def waiting(tmp_path):
    """A listener, and a delivery whose commitment request is open; gives them, the archive and the report."""
    (tmp_path / "post").mkdir()
    with listening(tmp_path) as node:
        memory = MemoryArchive(frozenset({STORAGE_COMMITMENT}), answers_at_once=False)
        post = Post(node.engine, tmp_path / "post", memory)
        node.listener.commitments = CommitmentAnswers(Outbox(node.engine), HandClock())
        uid = post.report()
        post.work()
        post.work_after(6)
        request = Dataset()
        request.TransactionUID = memory.transactions[0]
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = SR_CLASS, uid
        request.ReferencedSOPSequence = [item]
        yield node, post, request, uid


def test_an_archive_calls_us_back_with_the_scp_role_and_the_delivery_is_proven(waiting, monkeypatch):
    node, post, request, uid = waiting
    monkeypatch.setattr(node.listener, "_may_connect", {*node.listener._may_connect, "ARCHIVE"})
    archive = Pacs(held={uid}, asked=[request])
    assert archive.call_back(node.port) == 0x0000
    (row,) = post.rows()
    assert (row.state, row.verified_by) == ("delivered", "commitment")
    assert archive.call_back(node.port) == 0x0000  # again: nothing changes


def test_an_archive_that_lost_the_report_calls_back_and_gets_it_again(waiting, monkeypatch):
    node, post, request, _ = waiting
    monkeypatch.setattr(node.listener, "_may_connect", {*node.listener._may_connect, "ARCHIVE"})
    assert Pacs(asked=[request]).call_back(node.port) == 0x0000
    assert post.state() == "queued"
    post.work()
    assert len(post.archive.stored) == 2


def test_an_unknown_transaction_is_answered_with_success(waiting, monkeypatch):
    node, post, request, uid = waiting
    monkeypatch.setattr(node.listener, "_may_connect", {*node.listener._may_connect, "ARCHIVE"})
    request.TransactionUID = "2.25.999"
    assert Pacs(held={uid}, asked=[request]).call_back(node.port) == 0x0000
    assert post.state() == "sent"


def test_whom_we_do_not_know_may_not_call_back(waiting):
    node, post, request, uid = waiting
    assert Pacs(held={uid}, asked=[request]).call_back(node.port) is None
    assert post.state() == "sent"


def test_an_answer_without_a_transaction_is_none():
    assert read_answer(Dataset()) is None

"""A worker and an archive that can be asked: a study that is provably whole does not wait for its quiet time."""

from __future__ import annotations

from contextlib import closing, contextmanager

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from scp_node.ledger import tables
from scp_node.ledger.proofs import Proofs
from scp_node.ledger.states import StudyState
from scp_node.ports import STUDY_ROOT_FIND
from scp_node.readiness import Counts
from tests.worker_node import WorkerNode, destination, small_series, wait_for

NEVER_S = 3000


@contextmanager
def catalogue(held):
    """An archive that answers C-FIND with the counts of ``held``: series UID to number."""

    def find(event):
        asked = event.identifier
        answers = [("", sum(held.values()))] if asked.QueryRetrieveLevel == "STUDY" else held.items()
        for series_uid, count in answers:
            answer = Dataset()
            answer.QueryRetrieveLevel = asked.QueryRetrieveLevel
            answer.StudyInstanceUID = asked.StudyInstanceUID
            if series_uid:
                answer.SeriesInstanceUID = series_uid
                answer.NumberOfSeriesRelatedInstances = count
            else:
                answer.NumberOfStudyRelatedInstances = count
            yield 0xFF00, answer

    ae = AE("ARCHIVE")
    ae.add_supported_context(STUDY_ROOT_FIND)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, find)])
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


@pytest.fixture(autouse=True)
def _quiet_for_ever(monkeypatch):
    monkeypatch.setenv("NODULE_NODE__STUDY__QUIET_S", str(NEVER_S))
    monkeypatch.setenv("NODULE_NODE__STUDY__MAX_WAIT_S", str(NEVER_S))


def test_equal_counts_and_whole_lungs_start_it_unequal_ones_do_not(tmp_path):
    whole, cut = small_series("provably whole"), small_series("more at the archive")
    held = {whole.series_uid: whole.slices}
    with catalogue(held) as port:
        wanted = destination(port).rstrip() + "\nquery = true\n"
        with closing(WorkerNode(tmp_path, destinations=wanted)) as node:
            node.receive(whole.datasets())
            node.start()
            wait_for(lambda: node.state(whole.study_uid) == StudyState.REPORTED)
            story = [row.text for row in node.rows(tables.event) if row.kind == "study_ready"]
            held.clear()
            held[cut.series_uid] = cut.slices
            node.receive(cut.datasets()[:-1])
            wait_for(lambda: Proofs(node.engine).speaks_of(cut.study_uid)[0] is Counts.MORE)
            assert node.state(cut.study_uid) == StudyState.RECEIVING
    assert story == [
        "Revision 1 is complete: the archive holds the same images, they form a whole volume, "
        "and nobody is sending."
    ]

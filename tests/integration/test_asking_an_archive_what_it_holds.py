"""C-FIND for counts: what an archive answers, refuses, leaves out or breaks off."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from scp_node.network.query import DicomCatalogue
from scp_node.ports import STUDY_ROOT_FIND, ArchiveCounts, SendResult
from scp_node.settings import load_settings

SETTINGS = """
[[destinations]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {port}
query = true
[network]
connect_timeout_s = 5.0
"""


@contextmanager
def archive(answers, *, context=STUDY_ROOT_FIND):
    """An archive that answers C-FIND with what ``answers`` gives for a level; it notes what it was asked."""
    asked = []

    def find(event):
        asked.append(event.identifier)
        yield from answers(event.identifier.QueryRetrieveLevel, event)

    ae = AE("PACS")
    ae.add_supported_context(context)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, find)])
    try:
        yield SimpleNamespace(port=server.server_address[1], asked=asked)
    finally:
        server.shutdown()


def counts(folder, port):
    (folder / "node.toml").write_text(SETTINGS.format(port=port))
    settings = load_settings(folder / "node.toml")
    return DicomCatalogue(settings.destinations[0], "NODULE", settings.network).counts("1.2")


def match(**values):
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def held(level, _event):
    if level == "STUDY":
        yield 0xFF00, match(QueryRetrieveLevel="STUDY", StudyInstanceUID="1.2", NumberOfStudyRelatedInstances=5)
    else:
        for uid, count in (("1.2.1", 4), ("1.2.2", 1)):
            yield (
                0xFF00,
                match(
                    QueryRetrieveLevel="SERIES",
                    StudyInstanceUID="1.2",
                    SeriesInstanceUID=uid,
                    NumberOfSeriesRelatedInstances=count,
                ),
            )


def test_study_and_series_are_counted_on_one_association(tmp_path):
    with archive(held) as pacs:
        assert counts(tmp_path, pacs.port) == ArchiveCounts(5, {"1.2.1": 4, "1.2.2": 1})
    assert [(asked.QueryRetrieveLevel, asked.StudyInstanceUID) for asked in pacs.asked] == [
        ("STUDY", "1.2"),
        ("SERIES", "1.2"),
    ]


def test_counts_that_are_left_out_are_not_known(tmp_path):
    def silent(level, event):
        for status, answer in held(level, event):
            for keyword in ("NumberOfStudyRelatedInstances", "NumberOfSeriesRelatedInstances"):
                if keyword in answer:
                    delattr(answer, keyword)
            yield status, answer

    with archive(silent) as pacs:
        assert counts(tmp_path, pacs.port) == ArchiveCounts(None, {"1.2.1": None, "1.2.2": None})


def test_a_study_that_the_archive_does_not_have_is_not_counted(tmp_path):
    with archive(lambda *_: ()) as pacs:
        assert counts(tmp_path, pacs.port) == ArchiveCounts(None, {})


def test_matches_of_other_studies_are_left_out(tmp_path):
    def all_it_has(level, event):
        yield from held(level, event)
        yield 0xFF00, match(StudyInstanceUID="9.9", SeriesInstanceUID="9.9.1", NumberOfSeriesRelatedInstances=7)

    with archive(all_it_has) as pacs:
        assert counts(tmp_path, pacs.port) == ArchiveCounts(5, {"1.2.1": 4, "1.2.2": 1})


def test_a_failure_status_is_said(tmp_path):
    with archive(lambda *_: iter([(0xA700, None)])) as pacs:
        assert counts(tmp_path, pacs.port) == SendResult("retry", 0xA700, "The archive answered 0xA700 to C-FIND.")


def test_an_archive_that_breaks_off_gave_no_answer(tmp_path):
    def breaks_off(_level, event):
        event.assoc.abort()
        yield 0xFF00, match(StudyInstanceUID="1.2")

    with archive(breaks_off) as pacs:
        answer = counts(tmp_path, pacs.port)
    assert isinstance(answer, SendResult)
    assert answer.kind == "retry"


def test_an_archive_that_takes_no_c_find_says_so(tmp_path):
    with archive(held, context="1.2.840.10008.1.1") as pacs:
        answer = counts(tmp_path, pacs.port)
    assert answer == SendResult("refused", None, "The archive does not answer C-FIND (Study Root) from us.")


@pytest.mark.parametrize("port", [9])
def test_an_archive_that_is_away_says_so(tmp_path, port):
    answer = counts(tmp_path, port)
    assert isinstance(answer, SendResult)
    assert answer.kind == "retry"

"""An analysis survives the ledger, and its public document is cut at the operating point."""

import json

import pytest

from pipeline.domain.finding import Candidate, Finding, ModelIdentity, OperatingPoint
from pipeline.domain.outcome import Code, Notice, Outcome, Refusal
from pipeline.domain.result import Analysis, Coverage, from_record, to_document, to_record
from pipeline.domain.volume import ReceivedGeometry

ANALYSED = Analysis(
    study_instance_uid="1.2.3",
    series_instance_uid="1.2.3.4",
    outcome=Outcome.FINDINGS,
    notices=(Notice(Code.THICK_SLICES, "Slices of 3.0 mm."),),
    findings=(Finding((1.5, -2.25, 3.0), 6.4, 0.91), Finding((9.0, 8.0, 7.0), 4.0, 0.2)),
    candidates=(Candidate((1.0, -2.0, 3.0), 0.8),),
    received=ReceivedGeometry(140, (2.5, 0.8, 0.8), (350.0, 409.6, 409.6)),
    model=ModelIdentity("nodule", "1", "modern", "ab" * 32),
    operating_point=OperatingPoint("1fp", 0.5, 1.0),
    timings_s={"stage1": 3.5},
    coverage=Coverage((("1.2.3.4.1", None), ("1.2.3.4.2", 7)), 141, 1),
)
REFUSED = Analysis("1.2.3", "1.2.3.5", Outcome.NOT_ANALYSED, Refusal(Code.MISSING_SLICES, "3 slices are missing."))


@pytest.mark.parametrize("analysis", [ANALYSED, REFUSED], ids=["findings", "not analysed"])
def test_the_ledgers_record_reads_back_as_the_same_analysis(analysis: Analysis) -> None:
    assert from_record(json.loads(json.dumps(to_record(analysis)))) == analysis


def test_the_document_holds_only_findings_at_or_above_the_operating_point() -> None:
    document = to_document(ANALYSED)
    assert [f["probability"] for f in document["findings"]] == [0.91]
    assert document["schema"] == 1
    assert document["reason"] is None


def test_the_document_of_a_refusal_names_its_code() -> None:
    assert to_document(REFUSED)["reason"] == {"code": "MISSING_SLICES", "text": "3 slices are missing."}
    assert to_document(REFUSED)["findings"] == []


def test_sentences_in_the_document_are_one_line_of_ascii() -> None:
    quoting = Refusal(Code.CORRUPT_INSTANCE, "Image 1.2\u00e9 is damaged:\n  send it again.")
    analysis = Analysis("1.2.3", "1.2.3.5", Outcome.NOT_ANALYSED, quoting, (Notice(Code.CONTRAST, "a\tb\x1b"),))
    assert to_document(analysis)["reason"]["text"] == "Image 1.2? is damaged: send it again."
    assert to_document(analysis)["warnings"] == [{"code": "CONTRAST", "text": "a b?"}]

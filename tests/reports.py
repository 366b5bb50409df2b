"""Frozen results and headers for report tests: plain values, one property changed at a time."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pydicom

from pipeline.domain.finding import Finding, ModelIdentity, OperatingPoint
from pipeline.domain.outcome import Code, Notice, Outcome, Refusal
from pipeline.domain.result import Analysis, Coverage
from pipeline.domain.volume import ReceivedGeometry
from sr_writer.record import NodeIdentity, ReportRecord, freeze
from sr_writer.report import build_report, encode
from tests.builders import ChestSeries, as_bytes, uid_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom.dataset import Dataset

SMALL = ChestSeries(slices=12, rows=64, columns=64, pixel_mm=4.0, slice_step=2.5, noise_hu=0)
"""A chest series small enough for tests that look at headers only; its slices lie at z = -15 to 12.5 mm."""

NODE = NodeIdentity("NODULE1", "6a1c", "0.1.0", "Test Hospital")
MODEL = ModelIdentity("nodule-node modern", "2026.1", "modern", "0a1b2c3d" * 8)
POINT = OperatingPoint("standard", 0.5, 1.25)
FINISHED = datetime(2026, 3, 1, 9, 40, 12, tzinfo=UTC).astimezone(timezone(timedelta(hours=1)))
NODULES = (
    Finding((-20.04, 10.5, 1.3), 9.04, 0.93271),
    Finding((31.0, -12.25, -6.1), 16.0, 0.8),
    Finding((5.0, 5.0, 8.0), 4.25, 0.61),
)
REASON = Refusal(Code.IRREGULAR_SPACING, "Slices at 10.00 and 15.00 mm are 5.00 mm apart, expected 2.50 mm.")

_FILES: dict[str, list[bytes]] = {}


def headers(series: ChestSeries = SMALL) -> list[Dataset]:
    """The series' headers as a reader of files gets them: raw elements, no pixels."""
    if (key := repr(series)) not in _FILES:
        _FILES[key] = [as_bytes(dataset) for dataset in series.datasets()]
    return [reread(file) for file in _FILES[key]]


def reread(dicom: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(dicom), stop_before_pixels=True)


def analysis(
    findings: Sequence[Finding] = NODULES, *, series: ChestSeries = SMALL, notices: tuple[Notice, ...] = ()
) -> Analysis:
    """An analysed series with these findings above the operating point, and one below it."""
    return Analysis(
        study_instance_uid=series.study_uid,
        series_instance_uid=series.series_uid,
        outcome=Outcome.FINDINGS if findings else Outcome.NO_FINDINGS,
        notices=notices,
        findings=(*findings, Finding((0.0, 0.0, 0.0), 5.0, 0.2)),
        received=ReceivedGeometry(series.slices, (2.5, 4.0, 4.0), (30.0, 256.0, 256.0)),
        model=MODEL,
        operating_point=POINT,
    )


def covering(of: Analysis, *, series: ChestSeries = SMALL, left_out: int = 0, filled: int = 0) -> Analysis:
    """The same, saying that all images of the series but the last few were analysed."""
    images = tuple((uid_of("instance", series.name, k), None) for k in range(series.slices - left_out))
    return replace(of, coverage=Coverage(images, series.slices, filled))


def not_analysed(reason: Refusal = REASON, *, series: ChestSeries = SMALL) -> Analysis:
    return Analysis(series.study_uid, series.series_uid, Outcome.NOT_ANALYSED, reason)


def frozen(of: Analysis | None = None, **changes: Any) -> ReportRecord:
    """The record of an analysis (three findings by default)."""
    of = analysis() if of is None else of
    values: dict[str, Any] = {
        "study_instance_uid": of.study_instance_uid,
        "evidence_uids": [uid_of("instance", SMALL.name, k) for k in range(SMALL.slices)],
        "sr": "comprehensive3d",
        "finished_at": FINISHED,
        "node": NODE,
    }
    return freeze(of, **(values | changes))


def written(record: ReportRecord | None = None, slices: Sequence[Dataset] | None = None) -> Dataset:
    """The report as its receiver reads it."""
    document = build_report(frozen() if record is None else record, headers() if slices is None else slices)
    return pydicom.dcmread(io.BytesIO(encode(document)))


def name_of(item: Dataset) -> tuple[str, str]:
    """Concept name of a content item: scheme and value."""
    code = item.ConceptNameCodeSequence[0]
    return code.CodingSchemeDesignator, code.CodeValue


def value_of(item: Dataset) -> str:
    """Scheme and value of a CODE item, or the text of another."""
    if item.ValueType == "CODE":
        code = item.ConceptCodeSequence[0]
        return f"{code.CodingSchemeDesignator} {code.CodeValue}"
    if item.ValueType == "NUM":
        return str(item.MeasuredValueSequence[0].NumericValue)
    return str(item.UID if item.ValueType == "UIDREF" else item.TextValue)


def children(item: Dataset, *, named: str | None = None, of_type: str | None = None) -> list[Dataset]:
    """Children of a content item, by code value of their name or by value type."""
    return [
        child
        for child in item.get("ContentSequence", [])
        if (named is None or name_of(child)[1] == named) and (of_type is None or child.ValueType == of_type)
    ]


def descendants(item: Dataset) -> list[Dataset]:
    """The whole tree below an item, in document order."""
    return [found for child in children(item) for found in (child, *descendants(child))]


def groups(document: Dataset) -> list[Dataset]:
    """The measurement groups, in order."""
    return [group for box in children(document, named="126010") for group in children(box, named="125007")]


def evaluations(document: Dataset) -> list[Dataset]:
    """The items of Qualitative Evaluations."""
    (box,) = children(document, named="C0034375")
    return children(box)


def comments_of(document: Dataset) -> list[str]:
    return [item.TextValue for item in evaluations(document) if item.ValueType == "TEXT"]

"""The whole report: a frozen result and the headers of its images to one DICOM SR document (TID 1500).

Pure: the same record and headers give the same bytes, in whatever order the headers come.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from highdicom import sr

from pipeline.domain.outcome import Outcome
from sr_writer import codes
from sr_writer.evidence import (
    analysed_headers,
    analysed_images,
    evidence_sequence,
    frame_count,
    image_library,
    nearest_image,
    placed_images,
    reference_header,
)
from sr_writer.header import MANUFACTURER, MODEL_NAME, document_header, local_time, procedure_of
from sr_writer.items import container
from sr_writer.measurements import algorithm_version, measurement_group
from sr_writer.raw import encode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import tzinfo

    from pydicom.dataset import Dataset
    from pydicom.sr.coding import Code as Concept

    from sr_writer.evidence import PlacedImage
    from sr_writer.record import ReportRecord

__all__ = ["build_report", "comments", "encode", "series_description"]

LONGEST_REASON = 200
DISCLAIMER = "Research use; not for diagnosis."


def build_report(record: ReportRecord, slices: Sequence[Dataset]) -> Dataset:
    """Build the report of one series.

    Parameters
    ----------
    record
        The frozen result.
    slices
        Headers of all images of the series, in any order, as read and not yet looked at: an element whose value
        nobody asked for still holds its bytes, and those are what the report repeats. Single-frame or
        multi-frame; without any geometry when the series was not analysed. Where the record names the analysed
        images, evidence and marks refer to those alone.

    Returns
    -------
    Dataset
        The document; :func:`encode` gives its bytes.

    Raises
    ------
    ValueError
        When there are no slices, or findings in a series without any geometry: a bug of the caller.

    References
    ----------
    PS3.16 TID 1500; PS3.3 A.35.13 (Comprehensive 3D SR), A.35.3 (Comprehensive SR).
    """
    if not slices:
        raise ValueError("A report needs the headers of the images it is about.")
    evidence = analysed_headers(record, slices)
    placed = analysed_images(record, placed_images(evidence))
    reference = reference_header(evidence, placed)
    document = document_header(record, reference, series_description(record))
    document.update(_content(record, placed, reference, frame_count(slices)))
    document.CurrentRequestedProcedureEvidenceSequence = evidence_sequence(record, evidence)
    return document


def series_description(record: ReportRecord) -> str:
    """Say the outcome where a list of series shows it; viewers show about the first 22 characters."""
    shown, found = len(record.marks), record.marks_found
    count = f"{shown}" if shown == found else f"{shown} of {found}"
    return {
        Outcome.FINDINGS: f"AI nodules: {count} (unverified)",
        Outcome.NO_FINDINGS: "AI nodules: none (unverified)",
        Outcome.NOT_ANALYSED: "AI nodules: NOT DONE (unverified)",
    }[record.outcome]


def comments(record: ReportRecord, images: int, zone: tzinfo | None) -> tuple[str, ...]:
    """Write the sentences of the report, in ASCII.

    Parameters
    ----------
    record
        The frozen result.
    images
        How many images the series has, each frame for one; counts where the record does not know.
    zone
        The time zone of the document.
    """
    return (
        *_result(record),
        *_coverage(record, images),
        *(f"Warning: {notice.text}" for notice in record.notices),
        *_revision(record, zone),
        *record.site_texts,
        DISCLAIMER,
    )


def _content(
    record: ReportRecord, placed: Sequence[PlacedImage], reference: Dataset, images: int
) -> sr.ContainerContentItem:
    chosen = [nearest_image(placed, mark.position_lps_mm) for mark in record.marks]
    children = [
        *sr.LanguageOfContentItemAndDescendants(sr.CodedConcept.from_code(codes.ENGLISH)),
        *_observer(record),
        _procedure(record, reference),
    ]
    library = image_library(chosen)
    if library is not None:
        children.append(library)
    if chosen:
        groups = [
            measurement_group(number, mark, image, record)
            for number, (mark, image) in enumerate(zip(record.marks, chosen, strict=True), start=1)
        ]
        children.append(container(codes.IMAGING_MEASUREMENTS, groups))
    sentences = comments(record, images, local_time(record, reference).tzinfo)
    children.append(_evaluations(record, sentences))
    title = codes.TITLE_WITH_MARKS if chosen else codes.TITLE_WITHOUT_MARKS
    return container(title, children, template="1500", root=True)


def _observer(record: ReportRecord) -> sr.ObserverContext:
    node = record.node
    return sr.ObserverContext(
        observer_type=sr.CodedConcept.from_code(codes.DEVICE),
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=node.device_uid,
            name=node.ae_title,
            manufacturer_name=MANUFACTURER,
            model_name=MODEL_NAME,
            serial_number=node.version,
        ),
    )


def _procedure(record: ReportRecord, reference: Dataset) -> sr.CodeContentItem:
    item = sr.CodeContentItem(codes.PROCEDURE_REPORTED, codes.CT_OF_ANY_REGION, relationship_type="HAS CONCEPT MOD")
    copied = procedure_of(reference) if record.copy_procedure else None
    if copied is not None:
        item["ConceptCodeSequence"].value = [copied]
    return item


def _evaluations(record: ReportRecord, sentences: Sequence[str]) -> sr.ContainerContentItem:
    items = [
        sr.CodeContentItem(codes.SUMMARY, _summary(record), relationship_type="CONTAINS"),
        sr.CodeContentItem(codes.DETECTION_PERFORMED, codes.NODULE, relationship_type="CONTAINS"),
        *(sr.TextContentItem(codes.COMMENT, text, relationship_type="CONTAINS") for text in sentences),
    ]
    return container(codes.QUALITATIVE_EVALUATIONS, items)


def _summary(record: ReportRecord) -> Concept:
    if record.outcome is Outcome.NOT_ANALYSED:
        return codes.NONE_SUCCEEDED
    with_findings = record.outcome is Outcome.FINDINGS
    return codes.summary_of((notice.code for notice in record.notices), with_findings=with_findings)


def _result(record: ReportRecord) -> list[str]:
    if record.outcome is Outcome.NOT_ANALYSED:
        reason = "no reason was recorded" if record.reason is None else record.reason.text
        return [_shortened(f"Not analysed: {reason}")]
    shown, found = len(record.marks), record.marks_found
    sentences = [
        f"{shown} of {found} marks at or above the operating point are listed, the most probable first."
        if found
        else "No lung nodule was marked at or above the operating point."
    ]
    point = record.operating_point
    if point is not None:
        expected = point.expected_fp_per_scan
        rate = "not known" if expected is None else f"{expected:g} a scan"
        sentences.append(
            f"Operating point {point.name}: probability {point.threshold:g} or more; expected false marks {rate}."
        )
    if record.model is not None:
        sentences.append(f"Algorithm: {record.model.name} {algorithm_version(record)}.")
    return sentences


def _coverage(record: ReportRecord, images: int) -> list[str]:
    if record.slices is None or record.extent_z_mm is None:
        return []
    offered = images if record.offered is None else record.offered
    return [f"Coverage: {record.slices} of {offered} slices, {record.extent_z_mm:.0f} mm."]


def _revision(record: ReportRecord, zone: tzinfo | None) -> list[str]:
    moments = [datetime.fromisoformat(p.finished_at).astimezone(zone) for p in record.predecessors]
    sentences = [f"Replaces the report of {moment:%Y-%m-%d %H:%M:%S}." for moment in moments]
    return [*sentences, record.revision_text] if record.revision_text else sentences


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 3] + "..."

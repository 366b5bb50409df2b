"""Evidence, circle and centre refer to the images that were analysed, whatever else lies in the series."""

from __future__ import annotations

from dataclasses import replace

from pipeline.domain.finding import Finding
from pipeline.domain.result import Coverage
from sr_writer.report import build_report
from tests.builders import as_bytes
from tests.dicom_forms import enhanced
from tests.reports import SMALL, analysis, children, covering, descendants, frozen, groups, headers, reread, written


def evidence(document):
    (study,) = document.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    return {item.ReferencedSOPInstanceUID for item in series.ReferencedSOPSequence}


def circles(document):
    found = [item for group in groups(document) for item in descendants(group) if item.ValueType == "IMAGE"]
    return {item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in found}


def test_images_that_were_left_out_are_no_evidence():
    record = frozen(covering(analysis(()), left_out=3))
    assert evidence(written(record)) == {header.SOPInstanceUID for header in headers()[:-3]}


def test_a_circle_lies_on_an_analysed_image_even_where_another_is_nearer():
    beside = headers()
    for header in beside:
        header.SOPInstanceUID += ".9"
    nodule = Finding((0.0, 0.0, float(headers()[4].ImagePositionPatient[2])), 6.0, 0.9)
    record = frozen(covering(analysis((nodule,))))
    assert circles(written(record, [*beside, *headers()])) == {headers()[4].SOPInstanceUID}


def test_an_image_that_came_after_the_analysis_changes_no_byte_of_the_report():
    record = frozen(covering(analysis(), left_out=1))
    early, late = build_report(record, headers()[:-1]), build_report(record, headers())
    assert early.to_json() == late.to_json()


def test_of_a_multi_frame_image_the_analysed_frames_count():
    header = reread(as_bytes(enhanced(SMALL.datasets())))
    centre = (0.0, 0.0, float(SMALL.datasets()[4].ImagePositionPatient[2]))
    result = replace(
        analysis((Finding(centre, 6.0, 0.9),)),
        coverage=Coverage(tuple((str(header.SOPInstanceUID), frame) for frame in (1, 2, 3)), 12),
    )
    (group,) = groups(written(frozen(result), [header]))
    (region,) = children(group, of_type="SCOORD")
    (image,) = children(region)
    assert image.ReferencedSOPSequence[0].ReferencedFrameNumber == 3

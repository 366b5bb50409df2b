"""What a radiologist reads: the series description, the outcome's code and the comments."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from pipeline.domain.finding import Finding, OperatingPoint
from pipeline.domain.outcome import Code, Notice, Refusal
from pipeline.domain.volume import ReceivedGeometry
from tests.reports import (
    FINISHED,
    NODULES,
    analysis,
    children,
    comments_of,
    covering,
    evaluations,
    frozen,
    groups,
    headers,
    not_analysed,
    value_of,
    written,
)

DISCLAIMER = "Research use; not for diagnosis."
STANDARD = [
    "Operating point standard: probability 0.5 or more; expected false marks 1.25 a scan.",
    "Algorithm: nodule-node modern 0.1.0+2026.1.0a1b2c3d.",
    "Coverage: 12 of 12 slices, 30 mm.",
]


def many(count):
    return tuple(Finding((4.0 * n - 60, 2.0 * n, 1.3), 5.0, 0.99 - 0.01 * n) for n in range(count))


def test_findings():
    document = written()
    assert document.SeriesDescription == "AI nodules: 3 (unverified)"
    assert comments_of(document) == [
        "3 of 3 marks at or above the operating point are listed, the most probable first.",
        *STANDARD,
        DISCLAIMER,
    ]


def test_no_findings():
    document = written(frozen(analysis(())))
    assert document.SeriesDescription == "AI nodules: none (unverified)"
    assert comments_of(document) == [
        "No lung nodule was marked at or above the operating point.",
        *STANDARD,
        DISCLAIMER,
    ]


def test_not_analysed():
    document = written(frozen(not_analysed()))
    assert document.SeriesDescription == "AI nodules: NOT DONE (unverified)"
    assert comments_of(document) == [
        "Not analysed: Slices at 10.00 and 15.00 mm are 5.00 mm apart, expected 2.50 mm.",
        DISCLAIMER,
    ]


def test_not_analysed_after_a_volume_was_formed_tells_the_coverage():
    result = replace(not_analysed(), received=ReceivedGeometry(10, (2.5, 1, 1), (301.4, 300, 300)))
    assert "Coverage: 10 of 12 slices, 301 mm." in comments_of(written(frozen(result)))


def test_coverage_is_frozen_and_counts_what_was_filled_in():
    record = frozen(covering(analysis(()), filled=2))
    assert record.offered == 14
    assert "Coverage: 12 of 14 slices, 30 mm." in comments_of(written(record, headers()[:3]))


def test_a_long_reason_is_cut_to_200_ascii_characters():
    reason = Refusal(Code.DECODE_FAILED, "Größe " + "x" * 300)
    sentence = comments_of(written(frozen(not_analysed(reason))))[0]
    assert sentence.startswith("Not analysed: Groe xxx")
    assert (len(sentence), sentence[-3:], sentence.isascii()) == (200, "...", True)


def test_at_most_twenty_marks_are_listed_the_most_probable_first():
    document = written(frozen(analysis(many(23))))
    assert document.SeriesDescription == "AI nodules: 20 of 23 (unverified)"
    assert len(document.SeriesDescription) <= 64
    numbers = [value_of(children(g, of_type="NUM")[1]) for g in groups(document)]
    assert numbers == [f"{99 - n}.0" for n in range(20)]
    assert comments_of(document)[0].startswith("20 of 23 marks at or above the operating point are listed")


def test_findings_below_the_operating_point_are_not_reported():
    record = frozen(replace(analysis(), operating_point=OperatingPoint("custom", 0.85)))
    assert [mark.probability for mark in record.marks] == [0.93271]
    sentence = "Operating point custom: probability 0.85 or more; expected false marks not known."
    assert sentence in comments_of(written(record))


def test_each_warning_is_repeated():
    notices = (
        Notice(Code.THICK_SLICES, "Slices are 2.7 mm thick."),
        Notice(Code.CONTRAST, "Contrast medium was given."),
    )
    assert comments_of(written(frozen(analysis(notices=notices))))[4:6] == [
        "Warning: Slices are 2.7 mm thick.",
        "Warning: Contrast medium was given.",
    ]


def test_the_sites_own_sentences_stand_before_the_disclaimer():
    record = frozen(site_texts=("Read by Dr. A at station 3.", "M\u00fcnster branch"))
    assert comments_of(written(record))[-3:] == [
        "Read by Dr. A at station 3.",
        "Munster branch",
        "Research use; not for diagnosis.",
    ]


@pytest.mark.parametrize(("findings", "expected"), [(NODULES, "DCM 111244"), ((), "DCM 111243")])
@pytest.mark.parametrize(
    "code", [Code.SLICES_INTERPOLATED, Code.TIMED_OUT_INCOMPLETE, Code.MISSING_SLICES, Code.CORRUPT_INSTANCE]
)
def test_a_series_read_in_part_is_coded_so(findings, expected, code):
    notices = (Notice(Code.CONTRAST, "Contrast medium was given."), Notice(code, "A slice is missing."))
    assert value_of(evaluations(written(frozen(analysis(findings, notices=notices))))[0]) == expected


def test_a_new_report_says_which_one_it_replaces_and_why():
    first = frozen()
    second = frozen(
        finished_at=FINISHED + timedelta(hours=2),
        predecessors=[first],
        revision_text="2 images arrived after the first report.",
    )
    document = written(second)
    assert comments_of(document)[-3:] == [
        "Replaces the report of 2026-03-01 10:40:12.",
        "2 images arrived after the first report.",
        DISCLAIMER,
    ]
    (study,) = document.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    (old,) = series.ReferencedSOPSequence
    assert study.StudyInstanceUID == first.study_instance_uid
    assert series.SeriesInstanceUID == first.series_instance_uid
    assert (old.ReferencedSOPClassUID, old.ReferencedSOPInstanceUID) == (
        first.sop_class_uid,
        first.sop_instance_uid,
    )


def test_the_first_report_has_no_predecessor():
    assert "PredecessorDocumentsSequence" not in written()


def test_the_replaced_report_is_named_by_its_own_time_in_the_zone_of_the_images():
    slices = headers()
    for header in slices:
        header.TimezoneOffsetFromUTC = "-0500"
    document = written(frozen(predecessors=[frozen()]), slices)
    assert comments_of(document)[-2] == "Replaces the report of 2026-03-01 04:40:12."

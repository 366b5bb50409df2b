"""Which series is chosen, and why not the others: each rule alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.domain.limits import SelectionLimits
from pipeline.domain.outcome import Code, Notice, Refusal
from pipeline.selection import SeriesFacts, StackFacts, judge, kernel_class, rank, score_text

LIMITS = SelectionLimits()
STACK = StackFacts(
    slices=250,
    missing=0,
    spacing_mm=1.25,
    thickness_mm=1.25,
    pixel_mm=0.7,
    rows=512,
    columns=512,
    axial_angle_deg=0.0,
    tilt_deg=0.0,
)
GOOD = SeriesFacts(
    study_uid="1.2",
    series_uid="1.2.3",
    series_number=3,
    ct_images=250,
    stack=STACK,
    image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
    kernel_class="soft",
    age_years=60,
)


def with_stack(**changes):
    return replace(GOOD, stack=replace(STACK, **changes))


def best(*series):
    return min((judge(s, LIMITS) for s in series), key=rank)


def test_a_thin_soft_plain_chest_is_eligible_with_points_for_each_aspect():
    verdict = judge(replace(GOOD, text_score=1.0), LIMITS)
    assert verdict.eligible
    assert verdict.refusal is None
    assert verdict.score == pytest.approx(40 + 25 + 15 + 10 + 5 + 5 * 0.7 / 1.25, abs=0.01)
    assert verdict.reasons[0] == "Slices of 1.25 mm: 40.0 of 40 points."
    assert len(verdict.reasons) == 6
    assert verdict.facts["coverage_mm"] == 312.5


@pytest.mark.parametrize(
    ("facts", "code", "words"),
    [
        (replace(GOOD, ct_images=0, stack=None), Code.NOT_CT, "not a CT image series"),
        (with_stack(axial_angle_deg=20.1), Code.NOT_AXIAL, "20 degrees off"),
        (with_stack(thickness_mm=3.01), Code.SLICES_TOO_THICK, "thickness 3.01 mm is above the limit of 3 mm"),
        (with_stack(spacing_mm=3.01), Code.SLICES_TOO_THICK, "3.01 mm apart"),
        (with_stack(pixel_mm=1.26), Code.PIXELS_TOO_LARGE, "1.26 mm is above the limit of 1.25 mm"),
        (with_stack(columns=255), Code.PIXELS_TOO_LARGE, "512 x 255 pixels"),
        (with_stack(rows=4097), Code.TOO_LARGE, "4097 x 512"),
        (with_stack(slices=38, missing=2, spacing_mm=3.0), Code.TOO_FEW_SLICES, "Only 38 slices; at least 40"),
        (with_stack(slices=90), Code.COVERAGE_TOO_SHORT, "covers 112 mm; at least 120"),
        (replace(GOOD, image_type=()), Code.DERIVED_SERIES, "Image Type is nothing"),
        (replace(GOOD, image_type=("ORIGINAL", "SECONDARY", "AXIAL")), Code.DERIVED_SERIES, "SECONDARY"),
        (replace(GOOD, image_type=("DERIVED", "PRIMARY", "MPR")), Code.DERIVED_SERIES, "MPR"),
        (replace(GOOD, image_type=("ORIGINAL", "PRIMARY", "AXIAL", "MIP")), Code.DERIVED_SERIES, "MIP"),
        (replace(GOOD, image_type=("DERIVED", "PRIMARY", "CSA RESAMPLED")), Code.DERIVED_SERIES, "CSA"),
        (replace(GOOD, age_years=17), Code.OUT_OF_SCOPE, "younger than 18 years"),
        (replace(GOOD, skipped=True), Code.OUT_OF_SCOPE, "skip list"),
        (replace(GOOD, refusals=(Refusal(Code.MIXED_PATIENT, "Two people."),)), Code.MIXED_PATIENT, "Two people."),
    ],
)
def test_each_rule_alone_refuses(facts, code, words):
    verdict = judge(facts, LIMITS)
    assert not verdict.eligible
    assert verdict.score == 0
    assert verdict.refusal.code is code
    assert words in verdict.refusal.text
    assert verdict.reasons == (verdict.refusal.text,)


@pytest.mark.parametrize(
    "facts",
    [
        with_stack(axial_angle_deg=20.0),
        with_stack(thickness_mm=3.0, spacing_mm=3.0),
        with_stack(pixel_mm=1.25, rows=256, columns=256),
        with_stack(slices=40, spacing_mm=3.0),
        replace(GOOD, image_type=("DERIVED", "PRIMARY", "AXIAL")),
        replace(GOOD, image_type=("ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI")),
        replace(GOOD, image_type=("MIXED", "PRIMARY", "VOLUME", "NONE")),
        replace(GOOD, age_years=18),
        replace(GOOD, age_years=None),
        replace(GOOD, text_score=-1.0),
    ],
)
def test_the_limits_themselves_and_every_text_are_accepted(facts):
    assert judge(facts, LIMITS).eligible


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        (with_stack(thickness_mm=2.6), Code.THICK_SLICES),
        (with_stack(pixel_mm=1.01), Code.LARGE_PIXELS),
        (with_stack(slices=150), Code.SHORT_COVERAGE),
        (replace(GOOD, kernel_class="sharp"), Code.SHARP_KERNEL),
        (replace(GOOD, contrast=True), Code.CONTRAST),
        (replace(GOOD, lossy=True), Code.LOSSY_INPUT),
    ],
)
def test_what_is_less_than_the_training_data_is_said(facts, code):
    verdict = judge(facts, LIMITS)
    assert verdict.eligible
    assert [n.code for n in verdict.notices] == [code]


def test_notices_of_the_assembly_come_first():
    dropped = Notice(Code.EXTRA_IMAGES_DROPPED, "1 image was left out.")
    verdict = judge(replace(GOOD, notices=(dropped,), lossy=True), LIMITS)
    assert [n.code for n in verdict.notices] == [Code.EXTRA_IMAGES_DROPPED, Code.LOSSY_INPUT]


def test_of_several_reasons_the_first_check_wins_and_all_are_told():
    facts = replace(with_stack(thickness_mm=8.0, slices=10, pixel_mm=2.0), age_years=5)
    verdict = judge(facts, LIMITS)
    assert verdict.refusal.code is Code.SLICES_TOO_THICK
    assert [text.split()[0] for text in verdict.reasons] == ["Slice", "Pixel", "Only", "The", "The"]


def test_what_the_assembly_says_comes_before_every_rule():
    unassembled = Refusal(Code.TOO_FEW_SLICES, "Only 3 slices.")
    facts = replace(GOOD, stack=None, unassembled=unassembled, image_type=("DERIVED", "SECONDARY", "MPR"))
    assert judge(facts, LIMITS).refusal == unassembled


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (GOOD, with_stack(thickness_mm=2.5)),
        (GOOD, replace(GOOD, kernel_class="sharp")),
        (replace(GOOD, kernel_class="medium"), replace(GOOD, kernel_class="unknown")),
        (GOOD, with_stack(slices=110)),
        (GOOD, replace(GOOD, contrast=True)),
        (replace(GOOD, text_score=1.0), replace(GOOD, text_score=-1.0)),
        (with_stack(pixel_mm=0.9), with_stack(pixel_mm=0.6)),
        (GOOD, replace(GOOD, series_number=4)),
        (replace(GOOD, series_number=9), replace(GOOD, series_number=None)),
        (GOOD, replace(GOOD, series_uid="1.2.4")),
        (with_stack(thickness_mm=3.0, slices=60), with_stack(thickness_mm=3.1)),
    ],
)
def test_the_better_series_is_chosen_whatever_the_order(better, worse):
    better, worse = (replace(s, series_uid=s.series_uid + tail) for s, tail in ((better, ""), (worse, ".9")))
    assert best(better, worse).series_uid == best(worse, better).series_uid == better.series_uid


def test_of_refused_series_the_one_that_came_furthest_speaks_for_the_study():
    thick = replace(with_stack(thickness_mm=5.0), series_uid="thick")
    scout = replace(
        GOOD, series_uid="scout", ct_images=1, stack=None, unassembled=Refusal(Code.LOCALIZER_ONLY, "Scout.")
    )
    dose = replace(GOOD, series_uid="dose", ct_images=0, stack=None)
    damaged = replace(dose, series_uid="damaged", refusals=(Refusal(Code.CORRUPT_INSTANCE, "Damaged."),))
    order = sorted((judge(s, LIMITS) for s in (dose, damaged, scout, thick)), key=rank)
    assert [v.series_uid for v in order] == ["thick", "scout", "damaged", "dose"]


@pytest.mark.parametrize(
    ("kernel", "maker", "expected"),
    [
        ("STANDARD", "GE MEDICAL SYSTEMS", "soft"),
        ("CHEST", "GE", "soft"),
        ("DETAIL", "GE", "medium"),
        ("LUNG", "GE MEDICAL SYSTEMS", "sharp"),
        ("BONEPLUS", "GE", "sharp"),
        ("B30f", "SIEMENS", "soft"),
        ("I50f 3", "SIEMENS", "soft"),
        ("Br40d\\3", "SIEMENS", "soft"),
        ("Bl57d", "SIEMENS", "medium"),
        ("B70f", "SIEMENS", "sharp"),
        ("FC08", "TOSHIBA", "soft"),
        ("FC13", "TOSHIBA", "soft"),
        ("FC30", "TOSHIBA", "medium"),
        ("FC51", "TOSHIBA", "sharp"),
        ("B", "PHILIPS", "soft"),
        ("L", "PHILIPS", "sharp"),
        ("B", "SOMEBODY", "unknown"),
        ("", "GE", "unknown"),
        ("XQ", "GE", "unknown"),
    ],
)
def test_kernels_are_classed_by_maker(kernel, maker, expected):
    assert kernel_class(kernel, maker) == expected


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("CHEST LDCT", 1.0),
        ("THORAX INSP", 1.0),
        ("CHEST EXP", 0.0),
        ("CHEST COR MIP", -1.0),
        ("ABDOMEN", -1.0),
        ("", 0.0),
        ("SCREENING", 0.0),
    ],
)
def test_texts_score_and_never_more(text, score):
    assert score_text(text) == score


@pytest.mark.parametrize("warn_coverage_mm", [312.5, 100.0])
def test_limits_that_leave_no_room_for_a_warning_give_all_points(warn_coverage_mm):
    limits = SelectionLimits(min_coverage_mm=312.5, warn_coverage_mm=warn_coverage_mm, max_thickness_mm=1.25)
    verdict = judge(GOOD, limits)
    assert verdict.eligible
    assert verdict.reasons[0] == "Slices of 1.25 mm: 40.0 of 40 points."
    assert verdict.reasons[2] == "Coverage of 312 mm: 15.0 of 15 points."

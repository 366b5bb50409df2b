"""The record decides identity: equal records give equal bytes, and every field of a record counts."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.domain.finding import Finding
from pipeline.domain.outcome import Code, Notice, Outcome
from sr_writer.measurements import percent, rounded
from sr_writer.record import NodeIdentity, ReportRecord, plain_text, tracking_uid
from sr_writer.report import build_report, encode
from sr_writer.uids import uid_for
from tests.reports import FINISHED, NODULES, POINT, SMALL, analysis, covering, frozen, headers, not_analysed

UID = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+")
NOTICE = Notice(Code.CONTRAST, "Contrast medium was given.")

CHANGES = {
    "study_instance_uid": "2.25.1",
    "image_series_instance_uid": "2.25.2",
    "evidence_sha256": "0" * 64,
    "sr": "comprehensive",
    "outcome": Outcome.NO_FINDINGS,
    "reason": NOTICE,
    "notices": (NOTICE,),
    "marks": (),
    "marks_found": 4,
    "slices": 11,
    "extent_z_mm": 30.5,
    "model": None,
    "operating_point": replace(POINT, threshold=0.4),
    "parameters": ("resampled_mm=1.0,1.0,1.0",),
    "finished_at": (FINISHED + timedelta(seconds=1)).isoformat(),
    "node": NodeIdentity("NODULE2", "6a1c", "0.1.0", "Test Hospital"),
    "predecessors": frozen(predecessors=[frozen()]).predecessors,
    "revision_text": "Late images.",
    "copy_procedure": False,
    "site_texts": ("Read at station 3.",),
    "analysed": (("1.2.3", None),),
    "offered": 14,
    "revision": 2,
}


def test_every_field_of_the_record_is_tried_below():
    assert set(CHANGES) == {field.name for field in fields(ReportRecord)}


@pytest.mark.parametrize("field", CHANGES)
def test_a_changed_field_gives_other_uids(field):
    record, changed = frozen(), replace(frozen(), **{field: CHANGES[field]})
    assert changed.sop_instance_uid != record.sop_instance_uid
    assert changed.series_instance_uid != record.series_instance_uid


@pytest.mark.parametrize("part", ["position_lps_mm", "diameter_mm", "probability"])
def test_a_changed_mark_gives_other_uids(part):
    value = (0.001, 0.0, 0.0) if part == "position_lps_mm" else 0.75
    mark = replace(frozen().marks[0], **{part: value})
    assert replace(frozen(), marks=(mark,)).digest != replace(frozen(), marks=frozen().marks[:1]).digest


@pytest.mark.parametrize(
    "result", [analysis(), analysis(()), not_analysed(), covering(analysis())], ids=["marks", "none", "not", "new"]
)
def test_a_record_survives_json(result):
    record = frozen(result, predecessors=[frozen()], parameters=["a=1"], site_texts=["b"])
    again = ReportRecord.from_json(json.loads(json.dumps(record.to_json())))
    assert again == record
    assert again.sop_instance_uid == record.sop_instance_uid


def test_a_record_of_the_first_release_loads_and_keeps_its_uids():
    old = frozen().to_json()
    assert not {"analysed", "offered", "revision"} & set(old)
    assert ReportRecord.from_json(old).sop_instance_uid == "2.25.323703312443920613709973333817800416323"


def test_a_record_of_another_schema_is_refused():
    with pytest.raises(ValueError, match="another schema than 1"):
        ReportRecord.from_json(frozen().to_json() | {"schema": 2})


def test_uids_are_valid_short_and_different():
    record = frozen()
    uids = [
        record.sop_instance_uid,
        record.series_instance_uid,
        record.node.device_uid,
        *(mark.tracking_uid for mark in record.marks),
    ]
    assert len(set(uids)) == 6
    assert all(UID.fullmatch(uid) and len(uid) <= 64 for uid in uids)


def test_parts_of_a_uid_cannot_run_together():
    assert len({uid_for("a", "b", "c"), uid_for("a", "bc"), uid_for("ab", "c"), uid_for("a", 'b","c')}) == 4


def test_uids_never_change_between_releases():
    assert uid_for("sr", "x") == "2.25.310780725554736526180458180788715557419"


SCRIPT = """
import hashlib
from tests.reports import frozen, headers
from sr_writer.report import build_report, encode
print(hashlib.sha256(encode(build_report(frozen(), headers()[::-1]))).hexdigest())
"""


def test_two_processes_write_the_same_bytes():
    here = hashlib.sha256(encode(build_report(frozen(), headers()))).hexdigest()
    root = Path(__file__).parents[3]
    other = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
        env={"PYTHONPATH": str(root), "PYTHONHASHSEED": "4711", "TZ": "Asia/Tokyo", "OMP_NUM_THREADS": "1"},
    )
    assert other.stdout.strip() == here


def test_building_twice_from_the_same_headers_gives_the_same_bytes():
    slices = headers()
    assert encode(build_report(frozen(), slices)) == encode(build_report(frozen(), slices))


def test_encoding_twice_gives_the_same_bytes():
    document = build_report(frozen(), headers())
    assert encode(document) == encode(document)


def test_the_order_of_the_evidence_does_not_matter_but_its_members_do():
    uids = ["2.25.3", "2.25.1", "2.25.2"]
    assert frozen(evidence_uids=uids) == frozen(evidence_uids=sorted(uids))
    assert frozen(evidence_uids=uids) != frozen(evidence_uids=uids[1:])


def test_the_tracking_uid_follows_the_place_and_not_the_number():
    first, last = frozen().marks[0], frozen(analysis(NODULES[::-1])).marks[0]
    assert first == last
    x, y, z = NODULES[0].position_lps_mm
    assert first.tracking_uid == tracking_uid(SMALL.series_uid, (x + 0.009, y, z))
    assert first.tracking_uid != tracking_uid(SMALL.series_uid, (x + 0.1, y, z))
    assert first.tracking_uid != tracking_uid("2.25.9", (x, y, z))
    assert tracking_uid("2.25.9", (-0.01, 0.0, 0.0)) == tracking_uid("2.25.9", (0.0, 0.0, 0.0))


def test_a_nodule_that_moved_within_its_radius_keeps_its_tracking_uid():
    old = frozen()
    moved = (shifted(NODULES[0], 4.4), shifted(NODULES[1], 8.1), NODULES[2])
    new = frozen(analysis(moved), predecessors=[old])
    kept = [a.tracking_uid == b.tracking_uid for a, b in zip(old.marks, new.marks, strict=True)]
    assert kept == [True, False, True]


def test_two_new_nodules_never_share_an_old_tracking_uid():
    twins = (shifted(NODULES[1], 1.0), replace(shifted(NODULES[1], -2.0), probability=0.7))
    new = frozen(analysis(twins), predecessors=[frozen()])
    assert len({mark.tracking_uid for mark in new.marks}) == 2


def test_a_report_on_another_series_does_not_lend_its_tracking_uids():
    other = replace(frozen(), image_series_instance_uid="2.25.9")
    new = frozen(analysis((shifted(NODULES[0], 1.0),)), predecessors=[other])
    assert new.marks[0].tracking_uid != other.marks[0].tracking_uid


def shifted(finding: Finding, by_mm: float) -> Finding:
    x, y, z = finding.position_lps_mm
    return replace(finding, position_lps_mm=(x + by_mm, y, z))


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(ValueError, match="needs an offset from UTC"):
        frozen(finished_at=datetime(2026, 3, 1, 9, 40, tzinfo=UTC).replace(tzinfo=None))


def test_an_unknown_form_of_report_is_refused():
    with pytest.raises(ValueError, match="Unknown form of report 'basic'; known: comprehensive3d, comprehensive"):
        frozen(sr="basic")


@pytest.mark.parametrize("part", ["position_lps_mm", "diameter_mm", "probability"])
def test_a_number_that_is_none_is_refused(part):
    bad = (0.0, float("nan"), 0.0) if part == "position_lps_mm" else float("inf")
    with pytest.raises(ValueError, match="not a finite number"):
        frozen(analysis((replace(NODULES[0], **{part: bad}),)))


@pytest.mark.parametrize(
    ("value", "expected"), [(9.049999, 9.0), (9.05, 9.1), (4.25, 4.3), (0.15, 0.2), (10 / 3, 3.3), (1e-9, 0.0)]
)
def test_lengths_round_half_up_once(value, expected):
    assert rounded(value) == expected


def test_percentages_round_half_up_without_binary_noise():
    assert [percent(p) for p in (0.93271, 0.9995, 0.00049, 0.0015, 1.0)] == [93.3, 100.0, 0.0, 0.2, 100.0]


def test_plain_text_is_one_line_of_ascii():
    assert plain_text(" Größe\t5 mm\n\x00a\\b  ✓") == "Groe 5 mm a/b"

"""What the demo shows is read from the report with pydicom alone: marks, dump, table and page."""

from __future__ import annotations

import json
from math import dist

import pytest

from demo.page import render
from demo.sr import analysed_series, dump, read_comments, read_marks, read_summary
from demo.truth import Nodule, missed, nodule_of, read_truth, table
from tests.reports import NODULES, SMALL, frozen, not_analysed, written


def test_marks_have_the_numbers_and_places_of_the_findings():
    marks = read_marks(written())
    assert [mark.name for mark in marks] == ["Nodule 1", "Nodule 2", "Nodule 3"]
    for mark, finding in zip(marks, NODULES, strict=True):
        assert mark.diameter_mm == pytest.approx(finding.diameter_mm, abs=0.051)
        assert mark.certainty_percent == pytest.approx(100 * finding.probability, abs=0.051)
        assert dist(mark.centre_lps_mm, finding.position_lps_mm) < 0.01
        assert 2 * mark.radius_pixel * SMALL.pixel_mm == pytest.approx(finding.diameter_mm, abs=0.06)


def test_the_dump_names_every_number_and_no_patient():
    text = dump(written())
    for line in ("Tracking Identifier: Nodule 1", "Diameter: 9.0 mm", "Certainty of Finding: 93.3 %", "CIRCLE"):
        assert line in text
    assert "TEST-0001" not in text


def test_a_series_that_was_not_analysed_has_a_page_with_the_reason(tmp_path):
    report = written(frozen(not_analysed()))
    assert read_marks(report) == []
    assert read_summary(report) == "No algorithms succeeded; without findings"
    page = render(report, tmp_path, None, "a series")
    assert any(comment in page for comment in read_comments(report))
    assert "<article>" not in page


def test_the_page_draws_each_circle_where_the_report_has_it(tmp_path):
    SMALL.write(tmp_path)
    report = written()
    truth = [Nodule(NODULES[0].position_lps_mm, 9.0), Nodule((60.0, 60.0, 0.0), 7.0)]
    page = render(report, tmp_path, truth, "test <series>")
    assert page.count("<article>") == 3
    assert page.count("data:image/png;base64,") == 3 * 4
    mark = read_marks(report)[0]
    assert f'cx="{mark.centre_pixel[0] + 0.5}"' in page
    assert "9.0 mm" in page
    assert "93.3 %" in page
    assert "Research use only" in page
    assert "test &lt;series&gt;" in page
    assert "no nodule here" in page
    assert "missed" in page
    assert "http" not in page


def test_the_table_says_found_wrong_and_missed():
    marks = read_marks(written())
    truth = [Nodule(NODULES[0].position_lps_mm, 9.0), Nodule((60.0, 60.0, 0.0), 7.0)]
    assert nodule_of(marks[0], truth) == truth[0]
    assert nodule_of(marks[1], truth) is None
    assert missed(marks, truth) == [truth[1]]
    lines = table(marks, truth)
    assert "nodule of 9.0 mm, 0.0 mm away" in lines[1]
    assert "no nodule here" in lines[2]
    assert lines[-1].startswith("missed")
    assert "not known" in table(marks, None)[1]


def test_truth_is_read_from_a_phantom_and_from_luna16s_table(tmp_path):
    assert read_truth(tmp_path / "series", "1.2") is None
    (tmp_path / "series").mkdir()
    (tmp_path / "annotations.csv").write_text(
        "seriesuid,coordX,coordY,coordZ,diameter_mm\n1.2,1,2,3,4.5\n9.9,0,0,0,5\n"
    )
    assert read_truth(tmp_path / "series", "1.2") == [Nodule((1.0, 2.0, 3.0), 4.5)]
    assert read_truth(tmp_path / "series", "1.3") == []
    nodule = {"centre_lps_mm": [5, 6, 7], "diameter_mm": 8}
    (tmp_path / "series" / "truth.json").write_text(json.dumps({"series_instance_uid": "1.2", "nodules": [nodule]}))
    assert read_truth(tmp_path / "series", "1.2") == [Nodule((5.0, 6.0, 7.0), 8.0)]


def test_the_report_names_the_series_it_rests_on():
    assert analysed_series(written()) == SMALL.series_uid

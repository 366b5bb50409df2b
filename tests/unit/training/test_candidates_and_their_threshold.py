from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from training.candidates import (
    FLOOR,
    TABLE_RATES,
    Candidates,
    choose_threshold,
    load_candidates,
    recall_at,
    recall_curve,
    recall_table,
    save_candidates,
    write_candidates,
)
from training.judge_tables import read_submission


def found(name: str, scores: list[float], nodules: list[float]) -> Candidates:
    places = np.arange(3.0 * len(scores)).reshape(-1, 3)
    return Candidates(name, places, places + 0.5, np.array(scores), np.array(nodules))


SCANS = [found("a", [0.9, 0.6, 0.2, 0.1], [0.9, 0.2]), found("b", [0.7, 0.3], [0.7]), found("c", [0.5], [])]


def test_recall_and_candidates_a_scan_are_counted_over_all_scans():
    point = recall_at(SCANS, 0.5)
    assert point.recall == pytest.approx(2 / 3)
    assert point.candidates_per_scan == pytest.approx(4 / 3)


def test_the_threshold_is_the_highest_that_keeps_enough():
    chosen = choose_threshold(SCANS, 0.6)
    assert chosen.point.threshold == 0.7
    assert chosen.kept_enough
    assert choose_threshold(SCANS, 0.98).point.threshold == 0.2


def test_a_nodule_without_a_candidate_leaves_the_floor():
    chosen = choose_threshold([*SCANS, found("d", [0.4], [0.0])], 0.98)
    assert not chosen.kept_enough
    assert chosen.point.threshold == FLOOR
    assert chosen.point.recall == pytest.approx(3 / 4)


def test_the_curve_rises_with_more_candidates():
    curve = recall_curve(SCANS)
    assert [p.recall for p in curve] == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])
    assert all(a.candidates_per_scan <= b.candidates_per_scan for a, b in pairwise(curve))


def test_the_table_reads_the_curve_at_round_numbers_of_candidates():
    table = recall_table(SCANS)
    assert [p.candidates_per_scan for p in table] == [1.0, 2.0]
    assert len(table) < len(TABLE_RATES)
    assert recall_table([]) == []


def test_candidates_survive_a_file_and_are_written_in_millimetres(tmp_path: Path):
    path = tmp_path / "1.2.3.json"
    save_candidates(path, SCANS[0])
    again = load_candidates(path)
    assert again.name == "1.2.3"
    np.testing.assert_array_equal(again.scores, SCANS[0].scores)
    np.testing.assert_array_equal(again.nodules, SCANS[0].nodules)
    write_candidates(tmp_path / "c.csv", SCANS, 0.5)
    marks = read_submission(tmp_path / "c.csv")
    assert {uid: len(rows) for uid, rows in marks.items()} == {"a": 2, "b": 1, "c": 1}
    assert marks["a"][1].position_mm == (3.5, 4.5, 5.5)

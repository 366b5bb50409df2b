from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bench.detection_table import read_results, table

if TYPE_CHECKING:
    from pathlib import Path

LEFT_OUT = {
    "seeds": {"1": {}, "2": {}},
    "median": {
        "nodules": 8,
        "among_100": 8,
        "found_with_list": {"0.25": 7, "1": 7.5},
        "found_without_list": {"0.25": 7, "1": 7},
        "diameter_error_mm": 0.5,
        "centre_error_mm": 0.51,
    },
}


def lines(folder: Path) -> dict[str, str]:
    (folder / "left-out.json").write_text(json.dumps(LEFT_OUT))
    rows = table(read_results(folder, None, None)).splitlines()[2:]
    return {row.split(" | ")[0].lstrip("| "): row.split(" | ")[2].rstrip(" |") for row in rows}


def test_what_is_reached_is_said_and_what_falls_short_is_marked(tmp_path: Path):
    said = lines(tmp_path)
    assert said["scans left out: among 100 candidates"] == "8"
    assert said["found at 0.25 false marks a scan"] == "7 of 8 with the list, 7 without"
    assert said["found at 1"] == "**short**: 7.5 of 8 with the list, 7 without"
    assert said["diameter, mean error"] == "0.5 mm"
    assert said["position, median error"] == "**short**: 0.51 mm"


def test_what_no_run_showed_is_not_measured(tmp_path: Path):
    said = lines(tmp_path)
    assert said["benchmark: CPM"] == "not measured"
    assert said["fingerprint of insertion, area"] == "not measured"

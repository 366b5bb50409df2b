"""The whole document of each outcome, attribute by attribute, against the files in ``tests/golden``."""

from __future__ import annotations

import json

import pytest

from tests.golden_reports import FOLDER, readable, records
from tests.reports import written


@pytest.mark.parametrize("name", records())
def test_the_report_is_the_golden_one(name):
    expected = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert readable(written(records()[name])) == expected


def test_every_golden_file_has_its_report():
    assert {path.stem for path in FOLDER.glob("report-*.json")} == set(records())

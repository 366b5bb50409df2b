"""Every row of the shared table of real, odd and broken data, as the command ``detect`` would see it."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from pipeline.analysis import analyse_path, decide
from pipeline.domain.limits import SelectionLimits
from pipeline.domain.outcome import Outcome
from pipeline.domain.result import to_document
from pipeline.reading import files_in
from tests.fakes import scripted_detector

DATA = os.environ.get("NODULE_NODE_TEST_DATA")
REASON = "NODULE_NODE_TEST_DATA is not set"
FULLY_DECODED = "ct/LIDC-IDRI/LIDC-IDRI-0007"
ALSO_RIGHT = {"hard/orthanc_phenix_nonsquare_matrix": {"LOCALIZER_ONLY"}}
"""The one image of this folder is a sagittal scout by Image Type and orientation, which the table does not say."""


def rows():
    if DATA is None:
        return []
    return list(csv.DictReader((Path(DATA) / "expected.csv").read_text().splitlines()))


@pytest.mark.skipif(DATA is None, reason=REASON)
@pytest.mark.parametrize("row", rows(), ids=lambda row: row["path"])
def test_each_row_ends_as_the_table_says(row):
    folder = Path(DATA) / row["path"]
    codes = set(filter(None, row["codes"].split("|")))
    if row["detect"] == "analysed" and row["path"] != FULLY_DECODED:
        decision = decide(files_in(folder), SelectionLimits())
        assert len(decision.eligible) == 1, decision.refusal
        return
    analysis = analyse_path(folder, scripted_detector(), SelectionLimits(), operating_point="default")
    if row["detect"] == "analysed":
        assert analysis.outcome is Outcome.FINDINGS
        assert codes <= {n.code for n in analysis.notices}
    else:
        assert analysis.outcome is Outcome.NOT_ANALYSED
        assert analysis.reason.code in codes | ALSO_RIGHT.get(row["path"], set())
    assert to_document(analysis)["outcome"] == analysis.outcome.value


@pytest.mark.skipif(DATA is None, reason=REASON)
def test_every_series_of_the_odd_folders_gets_a_verdict_with_a_sentence():
    decision = decide(files_in(Path(DATA) / "hard"), SelectionLimits())
    assert len(decision.series) > 60
    assert not decision.eligible
    assert all(v.refusal is not None and v.reasons and v.refusal.text.isascii() for v in decision.series)

"""Real files, odd and broken ones: each can be the evidence of a *not analysed* report."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pydicom
import pytest

from sr_writer.raw import text_of
from sr_writer.report import build_report, encode
from tests.reports import frozen, not_analysed, reread

FOLDER = os.environ.get("NODULE_NODE_TEST_DATA")


def odd_folders() -> list[Path]:
    return sorted(path for path in Path(FOLDER or "unset", "hard").glob("*") if path.is_dir())


@pytest.mark.skipif(not FOLDER, reason="NODULE_NODE_TEST_DATA is not set")
def test_there_are_odd_objects_to_try():
    assert len(odd_folders()) > 5


@pytest.mark.parametrize("folder", odd_folders(), ids=lambda path: path.name)
def test_a_not_analysed_report_can_be_written_for_each_file(folder):
    tried = 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        header = header_of(path)
        if header is None or "SOPInstanceUID" not in header:
            continue
        document = reread(encode(build_report(frozen(not_analysed()), [header])))
        (study,) = document.CurrentRequestedProcedureEvidenceSequence
        (image,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
        assert text_of(image, "ReferencedSOPInstanceUID") == text_of(header, "SOPInstanceUID")
        tried += 1
    if not tried:
        pytest.skip("no file of this folder has a SOP Instance UID")


def header_of(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the files are odd on purpose, and pydicom says so
        try:
            return pydicom.dcmread(path, stop_before_pixels=True, force=True)
        except Exception:  # noqa: BLE001 - whatever cannot be parsed never gets as far as a report
            return None

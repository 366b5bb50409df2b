"""A real archive: Debian's Orthanc takes the report and files it under the study of the images."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from tests.e2e.orthanc_trip import SERIES
from tests.orthanc import alone_with_loopback, why_not


def test_orthanc_holds_one_report_in_the_study_of_the_images(tmp_path):
    if reason := why_not():
        pytest.skip(f"no Orthanc here: {reason}")
    trip = alone_with_loopback("tests.e2e.orthanc_trip", tmp_path)
    assert trip.returncode == 0
    held = json.loads(trip.stdout.splitlines()[-1])
    assert held["studies"] == 1
    (report,) = held["reports"]
    assert report["Modality"] == "SR"
    assert report["StudyInstanceUID"] == SERIES.study_uid
    assert report["PatientID"] == "TEST-0001"
    assert report["VerificationFlag"] == "UNVERIFIED"
    if shutil.which("dciodvfy") is not None:
        checked = subprocess.run(
            ["dciodvfy", "-new", tmp_path / "report.dcm"], capture_output=True, text=True, check=False
        )
        assert not re.findall(r"^(Error|Warning).*", checked.stderr, re.MULTILINE)

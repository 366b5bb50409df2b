"""Judges that are not ours: dciodvfy and dcentvfy (dicom3tools), dsrdump (DCMTK), highdicom's reader."""

from __future__ import annotations

import io
import shutil
import subprocess
from dataclasses import replace

import pytest
from highdicom import sr
from pydicom.dataset import Dataset

from pipeline.domain.outcome import Code, Notice
from sr_writer.report import build_report, encode
from tests.builders import as_bytes
from tests.reports import FINISHED, NODULES, SMALL, analysis, frozen, headers, not_analysed

PARTIAL = (Notice(Code.SLICES_INTERPOLATED, "1 slice was filled in."),)
RECORDS = {
    "three nodules": frozen(),
    "one nodule, other form": frozen(analysis(NODULES[:1]), sr="comprehensive"),
    "no nodule": frozen(analysis(())),
    "no nodule, read in part": frozen(analysis((), notices=PARTIAL)),
    "not analysed": frozen(not_analysed()),
    "a second report": frozen(finished_at=FINISHED, predecessors=[frozen()], revision_text="Late images."),
}


def needs(tool):
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")


def rich_headers():
    """Images with everything a report copies: requests, codes, other identifiers, a time zone, a size."""
    request, code, other = Dataset(), Dataset(), Dataset()
    request.RequestedProcedureID, request.RequestedProcedureDescription = "RP1", "CT Thorax für Müller"
    request.ScheduledProcedureStepID = "SP1"
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "24627-2", "LN", "CT Chest"
    other.PatientID, other.TypeOfPatientID = "ELSEWHERE", "TEXT"
    extra = {
        "RequestAttributesSequence": [request],
        "ProcedureCodeSequence": [code],
        "OtherPatientIDsSequence": [other],
        "TimezoneOffsetFromUTC": "+0100",
        "PatientSize": "1.75",
        "PatientWeight": "72",
        "IssuerOfPatientID": "HOSP-A",
    }
    return headers(replace(SMALL, extra=extra))


@pytest.fixture(params=RECORDS)
def dicom(request):
    return encode(build_report(RECORDS[request.param], rich_headers()))


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)


def remarks(result):
    return [line for line in (result.stdout + result.stderr).splitlines() if line.startswith(("Error", "Warning"))]


@needs("dciodvfy")
def test_dciodvfy_finds_no_error_and_no_warning(dicom, tmp_path):
    file = tmp_path / "sr.dcm"
    file.write_bytes(dicom)
    result = run("dciodvfy", "-new", str(file))
    assert "SR" in result.stderr
    assert remarks(result) == []


@needs("dsrdump")
def test_dsrdump_reads_the_whole_tree_in_silence(dicom, tmp_path):
    file = tmp_path / "sr.dcm"
    file.write_bytes(dicom)
    result = run("dsrdump", "-q", str(file))
    assert (result.returncode, result.stderr) == (0, "")
    assert "CAD Processing and Findings Summary" in result.stdout


@needs("dcentvfy")
def test_dcentvfy_finds_reports_and_images_consistent_but_for_one_known_remark(tmp_path):
    files = []
    for number, image in enumerate(SMALL.datasets()[:2]):
        files.append(tmp_path / f"ct{number}.dcm")
        files[-1].write_bytes(as_bytes(image))
    for number, record in enumerate(RECORDS.values()):
        files.append(tmp_path / f"sr{number}.dcm")
        files[-1].write_bytes(encode(build_report(record, headers())))
    result = run("dcentvfy", *map(str, files))
    lines = [line for line in (result.stdout + result.stderr).splitlines() if line.startswith(("Error", "Warning"))]
    assert [
        line for line in lines if "AccessionNumber" not in line or "IE <Series> versus <Study>" not in line
    ] == []


def test_highdicom_reads_the_findings_back():
    document = sr.srread(io.BytesIO(encode(build_report(frozen(), rich_headers()))))
    assert isinstance(document, sr.Comprehensive3DSR)
    groups = document.content.get_planar_roi_measurement_groups()
    assert [group.tracking_identifier for group in groups] == ["Nodule 1", "Nodule 2", "Nodule 3"]
    assert [group.tracking_uid for group in groups] == [mark.tracking_uid for mark in frozen().marks]
    assert {group.roi.graphic_type.value for group in groups} == {"CIRCLE"}
    assert [[m.value for m in group.get_measurements()] for group in groups] == [
        [9.0, 93.3],
        [16.0, 80.0],
        [4.3, 61.0],
    ]
    assert {group.finding_type.meaning for group in groups} == {"Nodule"}
    assert len(document.get_evidence()) == SMALL.slices


@pytest.mark.parametrize("name", ["no nodule", "not analysed"])
def test_highdicom_reads_a_report_without_findings_back(name):
    document = sr.srread(io.BytesIO(encode(build_report(RECORDS[name], rich_headers()))))
    assert isinstance(document.content, sr.MeasurementReport)
    assert document.content.get_planar_roi_measurement_groups() == []


def test_highdicom_reads_the_other_form_as_comprehensive_sr():
    record = RECORDS["one nodule, other form"]
    document = sr.srread(io.BytesIO(encode(build_report(record, headers()))))
    assert isinstance(document, sr.ComprehensiveSR)
    assert len(document.content.get_planar_roi_measurement_groups()) == 1

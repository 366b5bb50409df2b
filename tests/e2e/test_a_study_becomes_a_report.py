"""The main way: dcmsend to the running node, one report in the archive, and what the commands say of it."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from pydicom import dcmread

from demo.dicom_client import Peer, fetch_reports, send
from demo.sr import read_comments, read_marks, read_summary
from tests.builders import ChestSeries
from tests.e2e.node import ARCHIVE, node_and_archive
from tests.fakes import TWO_FINDINGS

SERIES = ChestSeries("e2e", slices=64)


def test_a_series_sent_with_dcmsend_comes_back_as_one_report(tmp_path):
    if shutil.which("dcmsend") is None:
        pytest.skip("dcmtk's dcmsend is not installed")
    SERIES.write(tmp_path / "series")
    with node_and_archive(tmp_path / "node", sender="DCMSEND") as (node, archive):
        node.start()
        subprocess.run(
            ["dcmsend", "-aec", "NODULE_NODE", "127.0.0.1", str(node.port), "+sd", tmp_path / "series"],
            check=True,
            capture_output=True,
        )
        node.wait(archive.reports, "a report in the archive")
        node.wait(lambda: node.delivered(SERIES.study_uid), "delivered")

        report = fetch_reports(Peer(ARCHIVE, archive.port), SERIES.study_uid)[0]
        assert len(archive.reports()) == 1
        assert read_summary(report) == "All algorithms succeeded; with findings"
        assert any("Research use" in comment for comment in read_comments(report))
        marks = read_marks(report)
        assert [mark.diameter_mm for mark in marks] == [finding.diameter_mm for finding in TWO_FINDINGS]
        for mark, finding in zip(marks, TWO_FINDINGS, strict=True):
            assert mark.centre_lps_mm == pytest.approx(finding.position_lps_mm, abs=0.01)
        assert report.PatientID == "TEST-0001"

        study = node.status()[SERIES.study_uid]
        assert study["state"] == "REPORTED"
        assert study["instances"]["ct"] == 64
        assert study["reports"][0]["outcome"] == "findings"
        explained = node.command("explain", SERIES.study_uid)
        assert explained.returncode == 0
        assert SERIES.series_uid in explained.stdout
        assert "TEST-0001" not in explained.stdout + node.log.read_text()
        assert node.stop() == 0


def test_a_report_that_is_due_waits_for_the_archive(tmp_path):
    SERIES.write(tmp_path / "series")
    with node_and_archive(tmp_path / "node") as (node, archive):
        archive.go_away()
        node.start()
        send(tmp_path / "series", node.peer, lambda *_: None)
        tried = node.wait(
            lambda: [
                r.deliveries[0]
                for s in [node.study(SERIES.study_uid)]
                for r in s.reports
                if r.deliveries[0].attempts
            ],
            "a delivery was tried",
        )[0]
        assert tried.state in {"queued", "sending"}
        assert archive.reports() == []

        archive.start()
        node.wait(archive.reports, "the report in the archive after it came back")
        node.wait(lambda: node.delivered(SERIES.study_uid), "delivered")
        assert len(archive.reports()) == 1
        assert dcmread(archive.reports()[0]).StudyInstanceUID == SERIES.study_uid

"""SIGKILL of the worker, of the detector, then of everything: the report arrives, once."""

from __future__ import annotations

from demo.dicom_client import send
from tests.builders import ChestSeries
from tests.e2e.detectors import DIARY
from tests.e2e.node import node_and_archive

SERIES = ChestSeries("killed", slices=64)


def test_the_report_arrives_once_whatever_is_killed_in_mid_detection(tmp_path):
    SERIES.write(tmp_path / "series")
    diary = tmp_path / "diary"
    diary.touch()

    def begun(times):
        return diary.read_text().count("begun") >= times

    with node_and_archive(tmp_path / "node", detector="tests.e2e.detectors:slow_detector") as (node, archive):
        node.environment[DIARY] = str(diary)
        node.start()
        send(tmp_path / "series", node.peer, lambda *_: None)

        node.wait(lambda: begun(1), "the first detection has begun")
        (detector,) = node.children("scp_node.detector_process")
        detector.kill()
        node.wait(lambda: begun(2), "the detection has begun again after the detector was killed")
        (worker,) = node.children("work")
        worker.kill()
        node.wait(lambda: begun(3), "the detection has begun again after the worker was killed")
        node.kill_everything()
        assert archive.reports() == []

        node.start()
        node.wait(archive.reports, "the report in the archive", limit_s=90)
        node.wait(lambda: node.delivered(SERIES.study_uid), "delivered")
        assert node.state(SERIES.study_uid) == "REPORTED"
        assert node.stop() == 0
        assert len(archive.reports()) == 1
        assert diary.read_text().split().count("ended") == 1

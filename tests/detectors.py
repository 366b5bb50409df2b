"""A detector for tests of the worker: it can be held up, and it can kill its process, by files in a folder."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fakes import TWO_FINDINGS, ScriptedDetector

if TYPE_CHECKING:
    from pipeline.domain.finding import Detection
    from pipeline.domain.outcome import Refusal
    from pipeline.domain.volume import Volume
    from pipeline.ports import Progress

FOLDER_VARIABLE = "NODULE_NODE_TEST_FOLDER"


class StagedDetector(ScriptedDetector):
    """Notes each start in ``starts``, waits while ``hold`` exists, dies of studies that ``poison`` names."""

    def detect(self, volume: Volume, progress: Progress | None = None) -> Detection | Refusal:
        folder = Path(os.environ[FOLDER_VARIABLE])
        with (folder / "starts").open("a") as starts:
            starts.write(f"{volume.study_instance_uid} {os.getpid()}\n")
        while (folder / "hold").exists():
            time.sleep(0.02)
        poison = folder / "poison"
        if poison.exists() and volume.study_instance_uid in poison.read_text():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().detect(volume, progress)


def staged_detector() -> StagedDetector:
    """The detector that ``detector.implementation = "tests.detectors:staged_detector"`` names."""
    return StagedDetector(TWO_FINDINGS)

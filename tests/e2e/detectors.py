"""Detectors that the running node loads by name, each with one property that a test needs."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fakes import TWO_FINDINGS, ScriptedDetector

if TYPE_CHECKING:
    from pipeline.domain.finding import Detection
    from pipeline.domain.outcome import Refusal
    from pipeline.domain.volume import Volume
    from pipeline.ports import Progress

DIARY = "E2E_DETECTOR_DIARY"
SLOW_S = 3.0


class SlowDetector(ScriptedDetector):
    """Takes its time, and writes a line into a diary when it begins and when it ends."""

    def detect(self, volume: Volume, progress: Progress | None = None) -> Detection | Refusal:
        _note("begun")
        time.sleep(SLOW_S)
        answer = super().detect(volume, progress)
        _note("ended")
        return answer


def slow_detector() -> SlowDetector:
    """What ``detector.implementation`` names."""
    return SlowDetector(TWO_FINDINGS)


class HeldDetector(ScriptedDetector):
    """Works until a file beside the diary lets it go on."""

    def detect(self, volume: Volume, progress: Progress | None = None) -> Detection | Refusal:
        _note("begun")
        while not Path(os.environ[DIARY] + ".go").exists():
            time.sleep(0.1)
        return super().detect(volume, progress)


def held_detector() -> HeldDetector:
    """What ``detector.implementation`` names."""
    return HeldDetector(TWO_FINDINGS)


def _note(what: str) -> None:
    with Path(os.environ[DIARY]).open("a") as diary:
        diary.write(f"{what}\n")

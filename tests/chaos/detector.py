"""A quick detector whose findings are a function of the pixels: a report on other pixels is found out."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.domain.finding import Finding
from tests.fakes import ScriptedDetector

if TYPE_CHECKING:
    from pipeline.domain.finding import Detection
    from pipeline.domain.outcome import Refusal
    from pipeline.domain.volume import Volume
    from pipeline.ports import Progress


class PixelDetector(ScriptedDetector):
    """Marks one to three voxels that the volume's hash names; every eighth volume has none."""

    def detect(self, volume: Volume, progress: Progress | None = None) -> Detection | Refusal:
        digest = hashlib.sha256(repr(volume.grid).encode() + volume.hu.tobytes()).digest()
        marks = 0 if digest[0] < 32 else 1 + digest[0] % 3
        findings = (_finding(volume, digest[1 + 6 * k : 7 + 6 * k]) for k in range(marks))
        self.findings = tuple(findings)
        return replace(super().detect(volume, progress))


def _finding(volume: Volume, parts: bytes) -> Finding:
    inner = [1 + part % (size - 2) for part, size in zip(parts, volume.hu.shape, strict=False)]
    x, y, z = (float(value) for value in volume.grid.index_to_lps(inner))
    return Finding((x, y, z), 4.0 + parts[3] / 32, 0.6 + (parts[4] * 256 + parts[5]) / 2**18)


def pixel_detector() -> PixelDetector:
    """What ``detector.implementation`` names."""
    return PixelDetector()

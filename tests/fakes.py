"""Stand-ins for the seams: a Detector whose answer is written down beforehand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.domain.finding import Candidate, Detection, Finding, ModelIdentity, OperatingPoint

if TYPE_CHECKING:
    from pipeline.domain.outcome import Notice, Refusal
    from pipeline.domain.volume import Volume
    from pipeline.ports import Progress

TWO_FINDINGS = (
    Finding((-40.0, 10.0, 20.0), 8.0, 0.92),
    Finding((35.0, -15.0, -30.0), 5.5, 0.61),
)


SCRIPTED = ModelIdentity("scripted", "1", "none", "0" * 64)


@dataclass
class ScriptedDetector:
    """Says the same of every volume, or refuses it; remembers the volumes it was shown."""

    findings: tuple[Finding, ...] = ()
    notices: tuple[Notice, ...] = ()
    refusal: Refusal | None = None
    model: ModelIdentity = SCRIPTED
    operating_points: tuple[OperatingPoint, ...] = (OperatingPoint("balanced", 0.5, 1.0),)
    volumes: list[Volume] = field(default_factory=list)

    def detect(self, volume: Volume, progress: Progress | None = None) -> Detection | Refusal:
        self.volumes.append(volume)
        if progress is not None:
            progress("scripted", 1.0)
        if self.refusal is not None:
            return self.refusal
        ranked = tuple(sorted(self.findings, key=lambda f: -f.probability))
        return Detection(
            findings=ranked,
            candidates=tuple(Candidate(f.position_lps_mm, f.probability) for f in ranked),
            model=self.model,
            operating_points=self.operating_points,
            notices=self.notices,
            timings_s={"scripted": 0.0},
        )


def scripted_detector() -> ScriptedDetector:
    """The detector that ``detector.implementation = "tests.fakes:scripted_detector"`` names."""
    return ScriptedDetector(TWO_FINDINGS)

"""The analysis of one series, and its JSON form (``pipeline/schemas/detect-1.json``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.domain.finding import Candidate, Finding, ModelIdentity, OperatingPoint
from pipeline.domain.outcome import Code, Notice, Outcome, Refusal
from pipeline.domain.volume import ReceivedGeometry

if TYPE_CHECKING:
    from collections.abc import Mapping

    ImageKey = tuple[str, int | None]
    """SOP Instance UID, and the 1-based frame of a multi-frame image."""

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which images an analysis speaks of.

    Attributes
    ----------
    images
        The images, or frames, behind the volume, in the order of z.
    offered
        Images or frames of the series, those included that were left out.
    filled
        Slices that were missing and interpolated.
    """

    images: tuple[ImageKey, ...]
    offered: int
    filled: int = 0


@dataclass(frozen=True, slots=True)
class Analysis:
    """How the analysis of one series ended.

    Attributes
    ----------
    study_instance_uid, series_instance_uid
        As received; empty where the input has none.
    outcome
        Findings or none at ``operating_point``, or not analysed.
    reason
        Why there is no analysis; ``None`` otherwise.
    notices
        Warnings, in the order they arose.
    findings
        At most 100, by falling probability, not cut by the operating point.
    candidates
        By falling score.
    received
        Geometry as received; ``None`` when no volume could be formed.
    coverage
        Which images were analysed; ``None`` when there are none, or they have no names (MetaImage).
    model
        The weights; ``None`` when the detector was never reached.
    operating_point
        The threshold in force; ``None`` when the detector was never reached.
    timings_s
        Seconds for each step.
    """

    study_instance_uid: str
    series_instance_uid: str
    outcome: Outcome
    reason: Refusal | None = None
    notices: tuple[Notice, ...] = ()
    findings: tuple[Finding, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    received: ReceivedGeometry | None = None
    model: ModelIdentity | None = None
    operating_point: OperatingPoint | None = None
    timings_s: Mapping[str, float] = field(default_factory=dict)
    coverage: Coverage | None = None

    @property
    def reported(self) -> tuple[Finding, ...]:
        """The findings at or above the operating point."""
        if self.operating_point is None:
            return ()
        return tuple(f for f in self.findings if f.probability >= self.operating_point.threshold)


def to_document(analysis: Analysis) -> dict[str, Any]:
    """Give the JSON document of ``nodule-node detect --json``: findings at or above the operating point only."""
    reason, received, model = analysis.reason, analysis.received, analysis.model
    return {
        "schema": SCHEMA,
        "study_instance_uid": analysis.study_instance_uid,
        "series_instance_uid": analysis.series_instance_uid,
        "outcome": analysis.outcome.value,
        "reason": None if reason is None else _message(reason),
        "warnings": [_message(notice) for notice in analysis.notices],
        "findings": [_finding(f) for f in analysis.reported],
        "candidates": [{"position_lps_mm": list(c.position_lps_mm), "score": c.score} for c in analysis.candidates],
        "volume": None
        if received is None
        else {
            "slices": received.slices,
            "spacing_zyx_mm": list(received.spacing_zyx_mm),
            "extent_zyx_mm": list(received.extent_zyx_mm),
        },
        "model": None
        if model is None
        else {"name": model.name, "version": model.version, "recipe": model.recipe, "sha256": model.sha256},
        "operating_point": None
        if analysis.operating_point is None
        else {
            "name": analysis.operating_point.name,
            "threshold": analysis.operating_point.threshold,
            "expected_fp_per_scan": analysis.operating_point.expected_fp_per_scan,
        },
        "timings_s": dict(analysis.timings_s),
    }


def to_record(analysis: Analysis) -> dict[str, Any]:
    """Give the JSON document for the ledger: as :func:`to_document`, with every finding and the images' names."""
    coverage = analysis.coverage
    return to_document(analysis) | {
        "all_findings": [_finding(f) | {"raw_score": f.raw_score} for f in analysis.findings],
        "coverage": None
        if coverage is None
        else {"images": list(map(list, coverage.images)), "offered": coverage.offered, "filled": coverage.filled},
    }


def from_record(record: Mapping[str, Any]) -> Analysis:
    """Read back what :func:`to_record` wrote.

    Raises
    ------
    KeyError, ValueError
        When the record was not written by this version's :func:`to_record`.
    """
    reason, received, model, point = (record[key] for key in ("reason", "volume", "model", "operating_point"))
    return Analysis(
        study_instance_uid=record["study_instance_uid"],
        series_instance_uid=record["series_instance_uid"],
        outcome=Outcome(record["outcome"]),
        reason=None if reason is None else Refusal(Code(reason["code"]), reason["text"]),
        notices=tuple(Notice(Code(n["code"]), n["text"]) for n in record["warnings"]),
        findings=tuple(
            Finding(_vector(f["position_lps_mm"]), f["diameter_mm"], f["probability"], f.get("raw_score"))
            for f in record["all_findings"]
        ),
        candidates=tuple(Candidate(_vector(c["position_lps_mm"]), c["score"]) for c in record["candidates"]),
        received=None
        if received is None
        else ReceivedGeometry(
            received["slices"], _vector(received["spacing_zyx_mm"]), _vector(received["extent_zyx_mm"])
        ),
        model=None if model is None else ModelIdentity(**model),
        operating_point=None if point is None else OperatingPoint(**point),
        timings_s=record["timings_s"],
        coverage=_coverage(record.get("coverage")),
    )


def _coverage(document: Mapping[str, Any] | None) -> Coverage | None:
    """Read a coverage; records of the first release have none."""
    if document is None:
        return None
    images = tuple((str(uid), frame) for uid, frame in document["images"])
    return Coverage(images, document["offered"], document["filled"])


def _message(said: Refusal | Notice) -> dict[str, str]:
    """Bring a sentence to one line of ASCII: it may quote a header's value or an error of a library."""
    printable = "".join(c if " " <= c <= "~" else "?" for c in " ".join(said.text.split()))
    return {"code": said.code.value, "text": printable}


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "position_lps_mm": list(finding.position_lps_mm),
        "diameter_mm": finding.diameter_mm,
        "probability": finding.probability,
    }


def _vector(values: list[float]) -> tuple[float, float, float]:
    x, y, z = values
    return float(x), float(y), float(z)

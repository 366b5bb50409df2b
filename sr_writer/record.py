"""The frozen result: everything a report says that does not come from the images' headers.

A record is made once, when an analysis has finished, and kept; the document is a function of the record and the
headers. So sending again after a crash gives the same UID and the same bytes, and any change gives another UID.
"""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from dataclasses import dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from pipeline.domain.finding import ModelIdentity, OperatingPoint
from pipeline.domain.outcome import Code, Notice, Outcome
from sr_writer.uids import uid_for

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.domain.finding import Finding
    from pipeline.domain.geometry import Vector
    from pipeline.domain.result import Analysis, ImageKey

SrForm = Literal["comprehensive3d", "comprehensive"]

SOP_CLASS_UIDS: Mapping[str, str] = {
    "comprehensive3d": "1.2.840.10008.5.1.4.1.1.88.34",
    "comprehensive": "1.2.840.10008.5.1.4.1.1.88.33",
}
SCHEMA = 1
_LATER: Mapping[str, object] = {"analysed": [], "offered": None, "revision": 1}
"""What the first release did not know, and the value with which it says nothing."""
MOST_MARKS = 20
"""More marks than this help nobody who reads the report; all findings stay in the ledger."""


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """Who made the report.

    Attributes
    ----------
    ae_title
        The node's AE title.
    installation_id
        A random text, made once when the node was installed: the Device Observer UID comes from it.
    version
        The version of this software.
    institution
        Institution Name of the report; empty: left out.
    """

    ae_title: str
    installation_id: str
    version: str
    institution: str = ""

    @property
    def device_uid(self) -> str:
        """Device Observer UID of this installation."""
        return uid_for("device", self.installation_id)


@dataclass(frozen=True, slots=True)
class Mark:
    """One nodule of the report.

    Attributes
    ----------
    position_lps_mm
        Centre ``(x, y, z)``, rounded to 0.001; mm, LPS.
    diameter_mm
        As the detector gave it: it is rounded once only, where it is written; mm.
    probability
        As the detector gave it, in [0, 1].
    tracking_uid
        Identity of the nodule over several reports.
    """

    position_lps_mm: Vector
    diameter_mm: float
    probability: float
    tracking_uid: str


@dataclass(frozen=True, slots=True)
class Predecessor:
    """An earlier document that this one replaces."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    finished_at: str


@dataclass(frozen=True, slots=True)
class ReportRecord:
    """One result, frozen.

    Attributes
    ----------
    study_instance_uid, image_series_instance_uid
        The analysed images, as received.
    evidence_sha256
        SHA-256 of the sorted SOP Instance UIDs of the evidence: the analysed images, else all of the series.
    sr
        ``comprehensive3d`` or ``comprehensive``.
    outcome, reason, notices
        How the analysis ended; ``reason`` only when not analysed.
    marks
        At most :data:`MOST_MARKS`, by falling probability.
    marks_found
        How many findings reached the operating point.
    slices, extent_z_mm
        Coverage as received; ``None`` when no volume was formed.
    model, operating_point, parameters
        The algorithm; ``None`` and empty when the detector was never reached.
    finished_at
        When the result was ready: ISO 8601 with its offset from UTC.
    node
        Who made it.
    predecessors
        Documents that this one replaces, as stored at the destination.
    revision_text
        Why there is a new report, in one sentence; empty: the first one.
    copy_procedure
        Whether the images' procedure code is repeated, or the plain code for CT is written.
    site_texts
        Sentences of the site that stand in every report of it.
    analysed
        SOP Instance UID, and frame of a multi-frame image, of each analysed image in the order of z; empty when
        nothing was analysed, and in records of the first release.
    offered
        Slices that the series has: its images, those left out included, and those that were filled in;
        ``None`` as above.
    revision
        Of the study: two revisions that end in one second with the same result are two documents.
    """

    study_instance_uid: str
    image_series_instance_uid: str
    evidence_sha256: str
    sr: SrForm
    outcome: Outcome
    reason: Notice | None
    notices: tuple[Notice, ...]
    marks: tuple[Mark, ...]
    marks_found: int
    slices: int | None
    extent_z_mm: float | None
    model: ModelIdentity | None
    operating_point: OperatingPoint | None
    parameters: tuple[str, ...]
    finished_at: str
    node: NodeIdentity
    predecessors: tuple[Predecessor, ...] = ()
    revision_text: str = ""
    copy_procedure: bool = True
    site_texts: tuple[str, ...] = ()
    analysed: tuple[ImageKey, ...] = ()
    offered: int | None = None
    revision: int = 1

    @property
    def digest(self) -> str:
        """SHA-256 of the record's JSON form; it decides the document's UIDs."""
        text = json.dumps(self.to_json(), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    @property
    def sop_class_uid(self) -> str:
        """SOP Class UID of the document."""
        return SOP_CLASS_UIDS[self.sr]

    @property
    def sop_instance_uid(self) -> str:
        """SOP Instance UID of the document."""
        return uid_for("sr", self.digest)

    @property
    def series_instance_uid(self) -> str:
        """Series Instance UID of the document: a new series for each, since some viewers show one per series."""
        return uid_for("sr-series", self.digest)

    @property
    def finished(self) -> datetime:
        """When the result was ready, with its offset from UTC."""
        return datetime.fromisoformat(self.finished_at)

    def to_json(self) -> dict[str, Any]:
        """Give the record as values that JSON knows; :meth:`from_json` reads it back to an equal record.

        What the first release did not know is left out where it says nothing: records of that release keep their
        digest, and with it the UIDs of the documents that archives hold.
        """
        values = {"schema": SCHEMA} | _values(self)
        document: dict[str, Any] = json.loads(json.dumps(values, default=_values, allow_nan=False))
        return {key: value for key, value in document.items() if key not in _LATER or value != _LATER[key]}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ReportRecord:
        """Read back what :meth:`to_json` gave.

        Raises
        ------
        KeyError, TypeError, ValueError
            When the document is not a record of this schema.
        """
        values = dict(document)
        if values.pop("schema") != SCHEMA:
            raise ValueError(f"This is a report record of another schema than {SCHEMA}.")
        model, point, reason = values["model"], values["operating_point"], values["reason"]
        values["outcome"] = Outcome(values["outcome"])
        values["reason"] = None if reason is None else _notice(reason)
        values["notices"] = tuple(_notice(n) for n in values["notices"])
        values["marks"] = tuple(_mark(m) for m in values["marks"])
        values["model"] = None if model is None else ModelIdentity(**model)
        values["operating_point"] = None if point is None else OperatingPoint(**point)
        values["parameters"] = tuple(values["parameters"])
        values["site_texts"] = tuple(values["site_texts"])
        values["node"] = NodeIdentity(**values["node"])
        values["predecessors"] = tuple(Predecessor(**p) for p in values["predecessors"])
        values["analysed"] = tuple((uid, frame) for uid, frame in values.get("analysed", ()))
        return cls(**values)


def freeze(
    analysis: Analysis,
    *,
    study_instance_uid: str,
    evidence_uids: Sequence[str],
    sr: SrForm,
    finished_at: datetime,
    node: NodeIdentity,
    predecessors: Sequence[ReportRecord] = (),
    revision_text: str | None = None,
    parameters: Sequence[str] = (),
    copy_procedure: bool = True,
    site_texts: Sequence[str] = (),
    revision: int = 1,
) -> ReportRecord:
    """Freeze the analysis of a series into the record of one report.

    Parameters
    ----------
    analysis
        How the analysis ended. Its findings at or above the operating point are reported.
    study_instance_uid
        Of the images, as received, even if malformed: it is the filing key.
    evidence_uids
        SOP Instance UIDs of all images of the series, in any order: the evidence where nothing was analysed.
    sr
        Which SOP class the destination takes.
    finished_at
        When the result was ready: aware, in the site's time zone.
    node
        Who made it.
    predecessors
        Records of the documents *known to be stored at that destination* which this one replaces.
        A nodule whose centre lies within the radius of one of theirs keeps its Tracking UID.
    revision_text
        Why there is a new report, in one ASCII sentence.
    parameters
        Further parameters of the algorithm, each ``name=value``.
    copy_procedure
        Whether the images' procedure code is repeated in the report.
    site_texts
        Sentences of the site for every report.
    revision
        Of the study, counted from 1.

    Raises
    ------
    ValueError
        When a number is not finite, ``finished_at`` has no offset, or ``sr`` is unknown: a bug of the caller.

    References
    ----------
    PS3.3 C.17.2.2 (Predecessor Documents), PS3.16 TID 4108 (tracking).
    """
    if finished_at.utcoffset() is None:
        raise ValueError("The time of the result needs an offset from UTC.")
    if sr not in SOP_CLASS_UIDS:
        raise ValueError(f"Unknown form of report {sr!r}; known: {', '.join(SOP_CLASS_UIDS)}.")
    reported = sorted(analysis.reported, key=lambda finding: -finding.probability)
    series_uid = analysis.series_instance_uid
    known = [mark for old in predecessors if old.image_series_instance_uid == series_uid for mark in old.marks]
    received, reason, coverage = analysis.received, analysis.reason, analysis.coverage
    evidence = sorted(evidence_uids if coverage is None else {uid for uid, _ in coverage.images})
    return ReportRecord(
        study_instance_uid=study_instance_uid,
        image_series_instance_uid=series_uid,
        evidence_sha256=hashlib.sha256("\n".join(evidence).encode()).hexdigest(),
        sr=sr,
        outcome=analysis.outcome,
        reason=None if reason is None else Notice(reason.code, plain_text(reason.text)),
        notices=tuple(Notice(notice.code, plain_text(notice.text)) for notice in analysis.notices),
        marks=_marks(reported[:MOST_MARKS], series_uid, known),
        marks_found=len(reported),
        slices=None if received is None else int(received.slices),
        extent_z_mm=None if received is None else float(received.extent_zyx_mm[0]),
        model=analysis.model,
        operating_point=analysis.operating_point,
        parameters=tuple(plain_text(parameter) for parameter in parameters),
        finished_at=finished_at.replace(microsecond=0).isoformat(),
        node=_plain_node(node),
        predecessors=tuple(_predecessor(record) for record in predecessors),
        revision_text=plain_text(revision_text or ""),
        copy_procedure=copy_procedure,
        site_texts=tuple(plain_text(text) for text in site_texts),
        analysed=() if coverage is None else coverage.images,
        offered=None if coverage is None else coverage.offered + coverage.filled,
        revision=revision,
    )


def tracking_uid(series_instance_uid: str, position_lps_mm: Vector) -> str:
    """Give a nodule's identity: its series and its centre to 0.1 mm, never its number in a list."""
    tenths = (round(float(value), 1) + 0.0 for value in position_lps_mm)
    return uid_for("nodule", series_instance_uid, *(f"{value:.1f}" for value in tenths))


def plain_text(text: str) -> str:
    """Bring a text to one line of printable ASCII; accents are dropped, a backslash would split the value."""
    ascii_only = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
    printable = "".join(c if c.isprintable() else " " for c in ascii_only.replace("\\", "/"))
    return " ".join(printable.split())


def _values(part: Any) -> dict[str, Any]:
    return {field.name: getattr(part, field.name) for field in fields(part)}


def _marks(findings: Sequence[Finding], series_uid: str, known: Sequence[Mark]) -> tuple[Mark, ...]:
    marks: list[Mark] = []
    free = list(known)
    for finding in findings:
        old = _same_nodule(finding, free)
        if old is not None:
            free.remove(old)
        uid = tracking_uid(series_uid, finding.position_lps_mm) if old is None else old.tracking_uid
        marks.append(_as_mark(finding, uid))
    return tuple(marks)


def _as_mark(finding: Finding, uid: str) -> Mark:
    x, y, z = (round(float(value), 3) + 0.0 for value in finding.position_lps_mm)
    mark = Mark((x, y, z), float(finding.diameter_mm), float(finding.probability), uid)
    if not all(map(math.isfinite, (*mark.position_lps_mm, mark.diameter_mm, mark.probability))):
        raise ValueError("A finding has a position, diameter or probability that is not a finite number.")
    return mark


def _same_nodule(finding: Finding, known: Sequence[Mark]) -> Mark | None:
    near = [
        (distance, mark)
        for mark in known
        if (distance := math.dist(mark.position_lps_mm, finding.position_lps_mm)) <= mark.diameter_mm / 2
    ]
    return min(near, key=lambda pair: pair[0])[1] if near else None


def _predecessor(record: ReportRecord) -> Predecessor:
    return Predecessor(
        record.study_instance_uid,
        record.series_instance_uid,
        record.sop_class_uid,
        record.sop_instance_uid,
        record.finished_at,
    )


def _plain_node(node: NodeIdentity) -> NodeIdentity:
    return NodeIdentity(
        plain_text(node.ae_title), node.installation_id, plain_text(node.version), plain_text(node.institution)
    )


def _notice(document: Mapping[str, str]) -> Notice:
    return Notice(Code(document["code"]), document["text"])


def _mark(document: Mapping[str, Any]) -> Mark:
    x, y, z = document["position_lps_mm"]
    return Mark(
        (float(x), float(y), float(z)),
        float(document["diameter_mm"]),
        float(document["probability"]),
        document["tracking_uid"],
    )

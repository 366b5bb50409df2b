"""What must be true after a round: each study has its true report in the archive, once for each revision."""

from __future__ import annotations

import io
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom import dcmread

from demo.sr import read_comments, read_marks, read_summary
from pipeline.analysis import analyse_series
from scp_node.detector_process import load
from scp_node.identifiers import split_file
from scp_node.settings import load_settings
from scp_node.spool import INCOMING
from sr_writer.record import NodeIdentity, freeze
from sr_writer.report import build_report, encode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pydicom.dataset import Dataset

    from tests.chaos.archive import Archive
    from tests.chaos.steps import LedgerView
    from tests.chaos.studies import Study


@dataclass
class Verdict:
    """The ledger of a round; each fault is a sentence."""

    studies: int = 0
    reports: int = 0
    again: int = 0
    revised: int = 0
    forgotten: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """All of them."""
        return [*self.lost, *self.doubled, *self.different, *self.other]


@dataclass(frozen=True)
class Known:
    """A report as the ledger has it."""

    study_uid: str
    revision: int
    path: str


def compare(
    studies: Sequence[Study], archive: Archive, ledger: LedgerView, folder: Path, *, every: int = 1
) -> Verdict:
    """Compare what was sent and acknowledged with what the archive got and the ledger says.

    What an undisturbed run says is found out for one study in ``every``.
    """
    known = {
        uid: Known(study_uid, revision, path)
        for uid, study_uid, revision, path in ledger.rows(
            "SELECT sop_instance_uid, study_uid, revision, path FROM nn_report"
        )
    }
    verdict = Verdict(
        studies=len(studies),
        reports=len(archive.kept),
        again=len(archive.arrived) - len({one.sop_instance_uid for one in archive.arrived}),
        forgotten=len(archive.forgotten),
    )
    undisturbed = Undisturbed(folder)
    for number, study in enumerate(studies):
        report = _newest(study, archive, known, verdict)
        if report is not None and number % every == 0:
            verdict.different += undisturbed.differs(study, report)
    verdict.different += _bytes_as_filed(archive, known, folder / "data")
    verdict.doubled += _one_document_for_each_result(archive, known)
    verdict.other += _in_order(archive, known)
    verdict.other += _failed(ledger)
    verdict.other += [f"left in the spool: {part.name}" for part in (folder / "data" / INCOMING).iterdir()]
    return verdict


def _newest(study: Study, archive: Archive, known: dict[str, Known], verdict: Verdict) -> Dataset | None:
    """Give the newest report of a study, if it is in the archive and speaks of all images."""
    if left := study.images - study.acknowledged:
        verdict.other.append(f"{study.uid}: {len(left)} images were never taken.")
        return None
    made = {uid: one.revision for uid, one in known.items() if one.study_uid == study.uid}
    newest = max(made, key=made.__getitem__, default="")
    if newest not in archive.kept:
        verdict.lost.append(f"{study.uid}: its last of {len(made)} reports is not in the archive.")
        return None
    verdict.revised += len(made) > 1
    report = archive.kept[newest].report
    if evidence(report) != study.images:
        verdict.lost.append(f"{study.uid}: the newest report speaks of {len(evidence(report))} images.")
        return None
    return report


class Undisturbed:
    """What a node says of a study that nothing disturbs: the same functions on the same bytes, in this process."""

    def __init__(self, folder: Path) -> None:
        settings = load_settings(folder / "node.toml")
        self._limits = settings.selection.limits()
        self._detector = load(settings.detector.model_dump(mode="json"), self._limits)

    def differs(self, study: Study, report: Dataset) -> Iterator[str]:
        """Say so when a report says something else; comments of later reports speak of what they replace too."""
        comments = "PredecessorDocumentsSequence" not in report
        undisturbed = dcmread(io.BytesIO(self.report(study)))
        said, expected = (_says(one, comments=comments) for one in (report, undisturbed))
        other = [f"{one}, not {true}" for one, true in zip(said, expected, strict=True) if one != true]
        if other:
            yield f"{study.uid}: its report says {'; '.join(other)}."

    def report(self, study: Study, **changes: Any) -> bytes:
        """Give the file of the report on all images of a study; ``changes`` are made to its record."""
        with tempfile.TemporaryDirectory() as folder:
            paths = study.series.write(Path(folder))
            analysis = analyse_series(paths, self._detector, self._limits, operating_point="default")
            headers = [dcmread(path, stop_before_pixels=True) for path in paths]
        record = freeze(
            analysis,
            study_instance_uid=study.uid,
            evidence_uids=sorted(study.images),
            sr="comprehensive3d",
            finished_at=datetime(2026, 1, 1, tzinfo=UTC),
            node=NodeIdentity("NODULE_NODE", "undisturbed", version("nodule-node")),
        )
        return encode(build_report(replace(record, **changes), headers))


def _says(report: Dataset, *, comments: bool) -> tuple[Any, ...]:
    return read_summary(report), read_marks(report), read_comments(report) if comments else None


def evidence(report: Dataset) -> set[str]:
    """The images that a report rests on."""
    return {
        str(image.ReferencedSOPInstanceUID)
        for of_study in report.CurrentRequestedProcedureEvidenceSequence
        for series in of_study.ReferencedSeriesSequence
        for image in series.ReferencedSOPSequence
    }


def _bytes_as_filed(archive: Archive, known: dict[str, Known], storage: Path) -> Iterator[str]:
    """Whatever arrived under a UID, each time, is the data set that the node filed under it."""
    for one in archive.arrived:
        filed = known.get(one.sop_instance_uid)
        if filed is None:
            yield f"{one.sop_instance_uid} arrived, and the ledger knows nothing of it."
            continue
        content = (storage / filed.path).read_bytes()
        if content[split_file(content).dataset_at :] != one.content:
            yield f"{one.sop_instance_uid} arrived with other bytes than were filed."


def _one_document_for_each_result(archive: Archive, known: dict[str, Known]) -> Iterator[str]:
    """No revision has two documents, and no two documents say the same of the same images."""
    documents: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for one in archive.arrived:
        uid, report = one.sop_instance_uid, one.report
        if uid in known:
            documents[one.study_uid, f"revision {known[uid].revision}"].add(uid)
        says = (frozenset(evidence(report)), read_summary(report), tuple(read_marks(report)))
        documents[one.study_uid, "the same said of the same images", says].add(uid)
    for (study, what, *_), uids in documents.items():
        if len(uids) > 1:
            yield f"{study}: {len(uids)} documents for one result ({what})."


def _in_order(archive: Archive, known: dict[str, Known]) -> Iterator[str]:
    """No report comes for the first time after one of a later revision."""
    newest: dict[str, int] = {}
    seen: set[str] = set()
    for one in archive.arrived:
        filed = known.get(one.sop_instance_uid)
        if filed is None or one.sop_instance_uid in seen:
            continue
        seen.add(one.sop_instance_uid)
        if filed.revision < newest.get(one.study_uid, 0):
            yield f"{one.study_uid}: revision {filed.revision} arrived after {newest[one.study_uid]}."
        newest[one.study_uid] = max(filed.revision, newest.get(one.study_uid, 0))


def _failed(ledger: LedgerView) -> Iterator[str]:
    """No study ended as failed, and no delivery was given up."""
    for study, text in ledger.rows("SELECT study_uid, text FROM nn_event WHERE kind = 'failed'"):
        yield f"{study} failed: {text}"
    for uid, text in ledger.rows(
        "SELECT sop_instance_uid, last_error FROM nn_delivery WHERE state = 'failed_final'"
    ):
        yield f"{uid} was given up: {text}"

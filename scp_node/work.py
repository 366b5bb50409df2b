"""The use case of the worker: one ready study becomes reports in the outbox, or a visible end without one.

It reads like the data's way: files, decision, analysis of each chosen series, frozen record, SR on disk, outbox.
Everything heavy happens in the children of ``scp_node.children``; the workflow engine calls the functions of
:class:`Work` as steps, any of which may run again after a crash.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from pipeline.analysis import Decision
from pipeline.domain.outcome import Code, Notice, Outcome, Refusal
from pipeline.domain.result import Analysis, from_record, to_record
from scp_node.children import DECODING, ChildFailure, file_report
from scp_node.ledger import outbox, studies
from scp_node.ledger.outbox import NewReport, Outbox
from scp_node.ledger.states import StudyState
from scp_node.ledger.steps import Steps
from scp_node.ledger.studies import ImageFile, Studies
from scp_node.readiness import Counts
from sr_writer.record import NodeIdentity, ReportRecord, SrForm, freeze

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from pipeline.selection import SeriesVerdict
    from scp_node.children import Cancelled, Reader, SeriesDetector
    from scp_node.ledger.proofs import Proofs
    from scp_node.ports import Clock
    from scp_node.settings import Destination, Settings

T = TypeVar("T")

CHILD_TRIES = 2
_GAPS = frozenset({Code.MISSING_SLICES, Code.SLICES_INTERPOLATED})

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Run:
    """One revision of one study."""

    study_uid: str
    revision: int
    timed_out: bool = False

    def key(self, *parts: str) -> str:
        """Name a step of this run."""
        return ":".join((self.study_uid, str(self.revision), *parts))


@dataclass(frozen=True, slots=True)
class NextRun:
    """What the workflow starts next: a series to analyse, or nothing more."""

    series_uid: str | None = None


@dataclass(frozen=True, slots=True)
class _Result:
    """An analysis and when it was ready, in the site's time zone.

    ``seen`` are the SOP Instance UIDs of the series as it was looked at; ``None`` where that was not kept, because
    the analysis names its images itself or is of an earlier release.
    """

    analysis: Analysis
    finished_at: datetime
    seen: frozenset[str] | None = None


class Work:
    """The steps from a ready study to its reports."""

    def __init__(
        self,
        settings: Settings,
        *,
        studies: Studies,
        proofs: Proofs,
        outbox: Outbox,
        steps: Steps,
        reader: Reader,
        detector: SeriesDetector,
        clock: Clock,
        node: NodeIdentity,
    ) -> None:
        self._settings = settings
        self._studies = studies
        self._proofs = proofs
        self._outbox = outbox
        self._steps = steps
        self._reader = reader
        self._detector = detector
        self._clock = clock
        self._node = node

    def decide(self, run: Run, cancelled: Cancelled) -> NextRun:
        """Rank the study's series; give the first one to analyse, or end the revision here."""
        self._studies.begin(run.study_uid, run.revision, now=self._clock.now())
        kept = self._steps.once(
            run.key("decide"),
            lambda: self._decision(run, cancelled),
            lambda connection, value: studies.record_decision(connection, run.study_uid, _by_series(value)),
        )
        if "failure" in kept:
            self._finish(run, StudyState.FAILED, [Code.INTERNAL_BUG], kept["failure"])
            return NextRun()
        before = self._ended_before(run, kept)
        if before is not None:
            text = "Images came again in another encoding, and nothing else: the report that was made counts."
            self._finish(run, StudyState(before["state"]), [Code(code) for code in before["codes"]], text)
            return NextRun()
        decision = _decision_of(kept)
        until = self._patience(run, decision)
        if until is not None:
            why = "Slices are missing; the study waits for them once more."
            self._studies.wait_again(run.study_uid, run.revision, until=until, why=why, now=self._clock.now())
            return NextRun()
        reported = self._studies.revisions_reported(run.study_uid, before=run.revision)
        if decision.best_ct is not None and reported >= self._settings.study.max_revisions:
            analysis = _exhausted(run, decision.best_ct, reported)
            exhausted = _Result(analysis, _local_time(kept["decided_at"]), _seen(kept))
            self._report_not_analysed(run, exhausted, cancelled)
            return NextRun()
        if decision.eligible:
            return NextRun(decision.eligible[0].series_uid)
        refused = _Result(_refused(run, decision), _local_time(kept["decided_at"]), _seen(kept))
        self._report_not_analysed(run, refused, cancelled)
        return NextRun()

    def analyse(self, run: Run, series_uid: str, cancelled: Cancelled) -> None:
        """Analyse one series in the detector child and keep the outcome."""
        key = run.key(series_uid, "analyse")
        self._steps.once(
            key,
            lambda: self._analysis(run, series_uid, key, cancelled),
            lambda connection, value: studies.record_analysis(
                connection, run.study_uid, series_uid, value["analysis"]
            ),
        )

    def report(self, run: Run, series_uid: str, cancelled: Cancelled) -> None:
        """Put the reports of an analysed series into the outbox; nothing for one that could not be analysed.

        Nothing either when an earlier revision has told the same: its late images came before it was analysed.
        """
        result = self._result(run, series_uid)
        if isinstance(result, Refusal) or result.analysis.outcome is Outcome.NOT_ANALYSED:
            return
        if self._told_before(run, series_uid):
            return
        self._write_reports(run, result, self._destinations(run), cancelled)

    def go_on(self, run: Run, series_uid: str, cancelled: Cancelled) -> NextRun:
        """Say which series comes next; after the last one, end the revision."""
        decision = _decision_of(self._steps.outcome(run.key("decide")))
        order = [verdict.series_uid for verdict in decision.eligible]
        done = order[: order.index(series_uid) + 1]
        results = [self._result(run, uid) for uid in done]
        if len(done) < len(order) and self._wants_another(results[-1]):
            return NextRun(order[len(done)])
        self._conclude(run, results, cancelled)
        return NextRun()

    def give_up(self, run: Run, code: Code, how: str) -> None:
        """End a revision whose run broke off for good; nothing when it ended otherwise."""
        self._finish(run, StudyState.FAILED, [code], how)

    def _decision(self, run: Run, cancelled: Cancelled) -> dict[str, Any]:
        self._compare_versions(run, cancelled)
        images = self._studies.images(run.study_uid)
        decision = self._twice(lambda: self._reader.decide(self._paths(images), cancelled))
        if isinstance(decision, ChildFailure):
            return {"failure": f"The images' headers could not be read: {decision.text}."}
        kept = {
            "decision": json.loads(decision.to_json()),
            "decided_at": self._clock.now(),
            "images": _fingerprint(images),
        }
        may_end_here = not decision.eligible or run.revision > self._settings.study.max_revisions
        if may_end_here and decision.best_ct is not None:
            best = decision.best_ct.series_uid
            kept["seen"] = [image.sop_instance_uid for image in images if image.series_uid == best]
        return kept

    def _compare_versions(self, run: Run, cancelled: Cancelled) -> None:
        """Find out which of the images that came again differ in their encoding alone (decision 0107)."""
        new = self._studies.new_versions(run.study_uid)
        if not new:
            return
        folder = self._settings.storage.folder
        pairs = [(folder / version.earlier_path, folder / version.path) for version in new]
        same = self._reader.same_content(pairs, cancelled)
        if isinstance(same, ChildFailure):
            return  # then they count as changed
        for version, alike in zip(new, same, strict=True):
            self._studies.keep_content(version.row, version.earlier_content if alike else version.sha256)

    def _ended_before(self, run: Run, kept: dict[str, Any]) -> dict[str, Any] | None:
        """Give how the last reported revision ended when it consisted of the same images."""
        last = self._studies.last_reported(run.study_uid, before=run.revision)
        if last is None:
            return None
        earlier = replace(run, revision=last)
        decided, ended = (self._steps.outcome(earlier.key(step)) for step in ("decide", "end"))
        same = decided is not None and decided.get("images", "") == kept.get("images")
        told = ended is not None and ended["state"] in (StudyState.REPORTED, StudyState.NOT_ANALYSED)
        return dict(ended) if same and told else None

    def _told_before(self, run: Run, series_uid: str) -> bool:
        """Say whether the last reported revision rests on the very images of this one."""
        last = self._studies.last_reported(run.study_uid, before=run.revision)
        if last is None:
            return False
        key = replace(run, revision=last).key(series_uid, "analyse")
        theirs, ours = self._steps.outcome(key), self._steps.outcome(run.key(series_uid, "analyse"))
        return bool(theirs and theirs["analysis"] and theirs.get("images", "") == ours.get("images"))

    def _patience(self, run: Run, decision: Decision) -> float | None:
        """Say until when missing slices are waited for; ``None`` when the decision counts."""
        best = decision.eligible[0] if decision.eligible else decision.best_ct
        if best is None or run.timed_out:
            return None
        codes = {notice.code for notice in best.notices}
        if best.refusal is not None:
            codes.add(best.refusal.code)
        _, last_received_at = self._studies.times(run.study_uid)
        until = last_received_at + self._settings.study.gap_wait_s
        return until if codes & _GAPS and self._clock.now() < until else None

    def _analysis(self, run: Run, series_uid: str, key: str, cancelled: Cancelled) -> dict[str, Any]:
        seen = self._studies.images(run.study_uid)
        images = [image for image in seen if image.series_uid == series_uid]
        answer = self._detect(run, series_uid, key, images, cancelled)
        if isinstance(answer, Analysis):
            late = _fingerprint(self._studies.images(run.study_uid)) != _fingerprint(seen)
            answer = self._completed(run, series_uid, images, answer, late=late)
        kept: dict[str, Any] = {
            "analysis": None,
            "failure": None,
            "finished_at": self._clock.now(),
            "images": _fingerprint(images),
        }
        match answer:
            case Refusal(Code.DECODE_FAILED):
                answer = Analysis(run.study_uid, series_uid, Outcome.NOT_ANALYSED, reason=answer)
            case Refusal():
                return kept | {"failure": {"code": answer.code.value, "text": answer.text}}
        if answer.coverage is None:
            kept |= {"seen": [image.sop_instance_uid for image in images]}
        return kept | {"analysis": to_record(answer)}

    def _detect(
        self, run: Run, series_uid: str, key: str, images: Sequence[ImageFile], cancelled: Cancelled
    ) -> Analysis | Refusal:
        starts = self._steps.starts(key)
        if starts > self._settings.worker.max_starts:
            return Refusal(Code.DETECTOR_FAILED, f"Series {series_uid}: given up after {starts - 1} starts.")
        answer = self._twice(lambda: self._detector.analyse(self._paths(images), cancelled))
        if isinstance(answer, Analysis):
            return answer
        code = Code.DECODE_FAILED if answer.during == DECODING else Code.DETECTOR_FAILED
        where = f" during {answer.during}" if answer.during else ""
        return Refusal(code, f"Series {series_uid}: {answer.text}{where}, {CHILD_TRIES} times.")

    def _completed(
        self, run: Run, series_uid: str, images: Sequence[ImageFile], analysis: Analysis, *, late: bool
    ) -> Analysis:
        more = list(self._incomplete(run, series_uid, late=late))
        changed = sum(image.changed for image in images)
        if changed:
            text = f"{changed} images arrived again with other content; the newest were used."
            more.append(Notice(Code.INSTANCE_CHANGED, text))
        if run.timed_out and analysis.outcome is not Outcome.NOT_ANALYSED:
            wait = f"{self._settings.study.max_wait_s:.0f} s"
            text = f"The study was still incomplete after the longest wait of {wait}."
            more.append(Notice(Code.TIMED_OUT_INCOMPLETE, text))
        return replace(
            analysis,
            study_instance_uid=run.study_uid,
            series_instance_uid=series_uid,
            notices=(*analysis.notices, *more),
        )

    def _incomplete(self, run: Run, series_uid: str, *, late: bool) -> Iterable[Notice]:
        """Warn of images that are known to exist, or that came while the others were analysed."""
        counts, text = self._proofs.speaks_of(run.study_uid)
        if counts is Counts.MORE and series_uid in text:
            yield Notice(Code.TIMED_OUT_INCOMPLETE, text)
        if late:
            text = "Images arrived while this series was analysed; they are not part of it."
            yield Notice(Code.LATE_IMAGES, text)

    def _wants_another(self, last: _Result | Refusal) -> bool:
        if self._settings.study.series == "all":
            return True
        return isinstance(last, _Result) and last.analysis.outcome is Outcome.NOT_ANALYSED

    def _conclude(self, run: Run, results: Sequence[_Result | Refusal], cancelled: Cancelled) -> None:
        """End a revision after its last series: a failure of ours outweighs a report, a report a refusal."""
        failures = [result for result in results if isinstance(result, Refusal)]
        analysed = [result for result in results if isinstance(result, _Result)]
        reported = [r.analysis for r in analysed if r.analysis.outcome is not Outcome.NOT_ANALYSED]
        if failures:
            self._finish(run, StudyState.FAILED, [failure.code for failure in failures], failures[0].text)
        elif reported:
            codes = [notice.code for analysis in reported for notice in analysis.notices]
            marks = sum(len(analysis.reported) for analysis in reported)
            told = [self._steps.outcome(run.key(a.series_instance_uid, "report")) for a in reported]
            text = f"Analysed; {marks} findings reported." if any(told) else "An earlier report says the same."
            self._finish(run, StudyState.REPORTED, codes, text)
        else:
            self._report_not_analysed(run, analysed[0], cancelled)

    def _report_not_analysed(self, run: Run, result: _Result, cancelled: Cancelled) -> None:
        """Report why a study was not analysed, on its best CT series, to the destinations that want to know."""
        reason = result.analysis.reason
        if reason is None:
            raise ValueError("A series that was not analysed has no reason.")
        wanted = [destination for destination in self._destinations(run) if destination.not_analysed]
        if wanted and result.analysis.series_instance_uid:
            self._write_reports(run, result, wanted, cancelled)
        codes = [reason.code, *(notice.code for notice in result.analysis.notices)]
        self._finish(run, StudyState.NOT_ANALYSED, codes, reason.text)

    def _write_reports(
        self, run: Run, result: _Result, destinations: Sequence[Destination], cancelled: Cancelled
    ) -> None:
        """Freeze, write and queue one report for each form and predecessor that the destinations need."""
        series_uid = result.analysis.series_instance_uid
        images = [
            image
            for image in self._studies.images(run.study_uid, series_uid)
            if result.seen is None or image.sop_instance_uid in result.seen
        ]
        self._steps.once(
            run.key(series_uid, "report"),
            lambda: [
                self._filed(run, record, images, cancelled) | {"destinations": names}
                for record, names in self._records(run, result, destinations, images)
            ],
            lambda connection, value: outbox.put(connection, list(map(_new_report, value)), now=self._clock.now()),
        )

    def _records(
        self, run: Run, result: _Result, destinations: Sequence[Destination], images: Sequence[ImageFile]
    ) -> Iterable[tuple[ReportRecord, list[str]]]:
        """Give each record with the names of its destinations; with no destination, one record for the ledger."""
        if not destinations:
            return [(self._record(run, result, "comprehensive3d", images, None), [])]
        groups: dict[str, tuple[ReportRecord, list[str]]] = {}
        for destination in destinations:
            earlier = self._predecessor(run, result.analysis.series_instance_uid, destination.name)
            record = self._record(run, result, destination.sr, images, earlier)
            groups.setdefault(record.sop_instance_uid, (record, []))[1].append(destination.name)
        return groups.values()

    def _record(
        self,
        run: Run,
        result: _Result,
        form: SrForm,
        images: Sequence[ImageFile],
        earlier: ReportRecord | None,
    ) -> ReportRecord:
        return freeze(
            result.analysis if earlier is None else _late(result.analysis),
            study_instance_uid=run.study_uid,
            evidence_uids=[image.sop_instance_uid for image in images],
            sr=form,
            finished_at=result.finished_at,
            node=self._node,
            predecessors=() if earlier is None else (earlier,),
            copy_procedure=self._settings.report.copy_procedure,
            site_texts=self._settings.report.texts,
            revision=run.revision,
        )

    def _predecessor(self, run: Run, series_uid: str, destination: str) -> ReportRecord | None:
        """Give the newest report that this one replaces and that is known to be at the destination."""
        one_series = series_uid if self._settings.study.series == "all" else None
        record = self._outbox.last_delivered(
            destination, run.study_uid, before_revision=run.revision, series_uid=one_series
        )
        return None if record is None else ReportRecord.from_json(record)

    def _filed(
        self, run: Run, record: ReportRecord, images: Sequence[ImageFile], cancelled: Cancelled
    ) -> dict[str, Any]:
        folder = self._settings.storage.folder
        return {
            **file_report(record, self._paths(images), folder, self._reader, cancelled),
            "study_uid": run.study_uid,
            "series_uid": record.image_series_instance_uid,
            "revision": run.revision,
            "whole_study": self._settings.study.series == "best",
        }

    def _finish(self, run: Run, state: StudyState, codes: Sequence[Code], text: str) -> None:
        values = list(dict.fromkeys(code.value for code in codes))
        self._steps.once(run.key("end"), lambda: {"state": state.value, "codes": values})
        won = self._studies.finish(
            run.study_uid, run.revision, state=state, codes=values, text=text, now=self._clock.now()
        )
        if won:
            log.info("Study finished", study=run.study_uid, revision=run.revision, state=state.value, why=text)

    def _result(self, run: Run, series_uid: str) -> _Result | Refusal:
        """Give the kept outcome of a series: its analysis, or a failure of ours."""
        kept = self._steps.outcome(run.key(series_uid, "analyse"))
        if kept["failure"] is not None:
            return Refusal(Code(kept["failure"]["code"]), kept["failure"]["text"])
        return _Result(from_record(kept["analysis"]), _local_time(kept["finished_at"]), _seen(kept))

    def _destinations(self, run: Run) -> tuple[Destination, ...]:
        return self._settings.destinations_for(self._studies.sender(run.study_uid))

    def _twice(self, work: Callable[[], T | ChildFailure]) -> T | ChildFailure:
        answer = work()
        for _ in range(CHILD_TRIES - 1):
            if not isinstance(answer, ChildFailure):
                break
            log.warning("A child failed; trying again", during=answer.during, why=answer.text)
            answer = work()
        return answer

    def _paths(self, images: Sequence[ImageFile]) -> list[Path]:
        return [self._settings.storage.folder / image.path for image in images]


def _local_time(epoch_s: float) -> datetime:
    """Give a stored time in the site's zone, which the report states."""
    return datetime.fromtimestamp(epoch_s, UTC).astimezone()


def _refused(run: Run, decision: Decision) -> Analysis:
    """Give the analysis of a study without an eligible series: the refusal of its best CT series."""
    best = decision.best_ct
    if best is None or best.refusal is None:
        return Analysis(run.study_uid, "", Outcome.NOT_ANALYSED, reason=decision.refusal)
    return Analysis(run.study_uid, best.series_uid, Outcome.NOT_ANALYSED, reason=best.refusal, notices=best.notices)


def _exhausted(run: Run, best: SeriesVerdict, reports: int) -> Analysis:
    """Give the last analysis of a study that changed too often: it says that nobody looks any more."""
    text = (
        f"The study changed again after {reports} reports; the earlier reports do not speak of the images as they "
        "are now. Ask for a new analysis by hand."
    )
    reason = Refusal(Code.TOO_MANY_REVISIONS, text)
    return Analysis(run.study_uid, best.series_uid, Outcome.NOT_ANALYSED, reason=reason)


def _fingerprint(images: Sequence[ImageFile]) -> str:
    """Name a set of images by what they hold, not by how they are encoded."""
    lines = sorted(f"{image.sop_instance_uid} {image.content}" for image in images)
    return hashlib.sha256("\n".join(lines).encode("ascii", "replace")).hexdigest()


def _seen(kept: dict[str, Any]) -> frozenset[str] | None:
    return frozenset(kept["seen"]) if "seen" in kept else None


def _decision_of(kept: dict[str, Any]) -> Decision:
    return Decision.from_json(json.dumps(kept["decision"]))


def _late(analysis: Analysis) -> Analysis:
    text = "Images arrived after an earlier report; this report replaces it."
    return replace(analysis, notices=(*analysis.notices, Notice(Code.LATE_IMAGES, text)))


def _new_report(kept: dict[str, Any]) -> NewReport:
    return NewReport(**{**kept, "destinations": tuple(kept["destinations"])})


def _by_series(kept: dict[str, Any]) -> dict[str, Any]:
    """Give the ledger's column for each series: its verdict and its rank."""
    verdicts = kept["decision"]["series"] if "decision" in kept else []
    return {verdict["series_uid"]: verdict | {"rank": rank} for rank, verdict in enumerate(verdicts, 1)}

"""The short-lived child that opens DICOM files for the worker: it decides over headers, or writes one report.

What arrives from the network is read here, under a memory and a time limit; a file that kills its reader kills
this process alone. Neither torch nor the database is loaded. One child is always started ahead: starting takes
longer than most answers.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scp_node.child import describe, die_with_parent, keep_answers_apart, leave_stopping_to_the_parent, limit_memory
from scp_node.children import ChildFailure, RunCancelledError, WrittenReport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.analysis import Decision
    from pipeline.domain.limits import SelectionLimits
    from pipeline.wholeness import Wholeness
    from scp_node.children import Cancelled
    from sr_writer.record import ReportRecord

_POLL_S = 1.0
_DECISIONS_KEPT = 16


class ReaderClient:
    """The worker's side: one child for each question, of which the next one waits with its modules loaded.

    Parameters
    ----------
    limits
        ``[selection]``.
    timeout_s
        The child is killed after so long.
    memory_mib
        Its address space.

    Notes
    -----
    A child dies with the thread that started it, so one thread starts them all and lives as long as this client.
    """

    def __init__(self, limits: SelectionLimits, *, timeout_s: float, memory_mib: int) -> None:
        self._limits = limits
        self._timeout_s = timeout_s
        self._memory_mib = memory_mib
        # Files keep what they hold, so a decision on them stays true.
        self._decided: dict[tuple[Path, ...], str] = {}
        self._wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[subprocess.Popen[bytes] | OSError] = queue.SimpleQueue()
        self._keeper = threading.Thread(target=self._keep, name="reader-keeper", daemon=True)
        self._wanted.put(True)
        self._keeper.start()

    def close(self) -> None:
        """Stop the child that waits."""
        self._wanted.put(False)
        self._keeper.join()
        waiting = self._ready.get()
        if not isinstance(waiting, OSError):
            with waiting:
                waiting.kill()

    def decide(self, paths: Sequence[Path], cancelled: Cancelled) -> Decision | ChildFailure:
        """Rank the series of a study by their headers; not read again after a look at the same files."""
        from pipeline.analysis import Decision

        known = self._decided.pop(tuple(paths), None)
        if known is not None:
            return Decision.from_json(known)
        request = {"do": "decide", "paths": list(map(str, paths)), "limits": asdict(self._limits)}
        answer = self._ask(request, cancelled)
        return answer if isinstance(answer, ChildFailure) else Decision.from_json(answer["decision"])

    def look(self, paths: Sequence[Path], cancelled: Cancelled) -> Wholeness | ChildFailure:
        """Say whether the images of a study form a whole volume."""
        from pipeline.wholeness import Wholeness

        request = {"do": "look", "paths": list(map(str, paths)), "limits": asdict(self._limits)}
        answer = self._ask(request, cancelled)
        if isinstance(answer, ChildFailure):
            return answer
        while len(self._decided) >= _DECISIONS_KEPT:
            self._decided.pop(next(iter(self._decided)), None)
        self._decided[tuple(paths)] = answer["decision"]
        return Wholeness(**answer["wholeness"])

    def same_content(self, pairs: Sequence[tuple[Path, Path]], cancelled: Cancelled) -> list[bool] | ChildFailure:
        """Say of each pair of files whether they are one image in two encodings."""
        request = {"do": "same_content", "pairs": [list(map(str, pair)) for pair in pairs]}
        answer = self._ask(request, cancelled)
        return answer if isinstance(answer, ChildFailure) else [bool(same) for same in answer["same"]]

    def write_report(
        self, record: ReportRecord, images: Sequence[Path], target: Path, cancelled: Cancelled
    ) -> WrittenReport | ChildFailure:
        """Write a record's SR to a file, durably, with the headers of these images."""
        request = {
            "do": "write_report",
            "record": record.to_json(),
            "paths": list(map(str, images)),
            "target": str(target),
        }
        answer = self._ask(request, cancelled)
        return answer if isinstance(answer, ChildFailure) else WrittenReport(answer["sha256"])

    def _ask(self, request: dict[str, Any], cancelled: Cancelled) -> dict[str, Any] | ChildFailure:
        doing = str(request["do"])
        with self._child() as child:
            try:
                output = self._wait(child, json.dumps(request).encode("ascii"), cancelled)
            finally:
                child.kill()
        if output is None:
            return ChildFailure(doing, f"the reader gave no answer in {self._timeout_s:.0f} s")
        if not output:
            return ChildFailure(doing, f"the reader stopped without an answer (exit {child.returncode})")
        answer: dict[str, Any] = json.loads(output)
        return ChildFailure(doing, answer["failed"]) if "failed" in answer else answer

    def _child(self) -> subprocess.Popen[bytes]:
        """Give a child that waits for its question, and have the next one started."""
        while True:
            child = self._ready.get()
            self._wanted.put(True)
            if isinstance(child, OSError):
                raise child
            if child.poll() is None:
                return child
            with child:  # it died while it waited, killed for the machine's memory perhaps
                pass

    def _keep(self) -> None:
        command = [sys.executable, "-m", "scp_node.reader_process", str(os.getpid()), str(self._memory_mib)]
        while self._wanted.get():
            try:
                self._ready.put(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            except OSError as fault:  # no memory for another process: who asks gets it, this thread must live
                self._ready.put(fault)

    def _wait(self, child: subprocess.Popen[bytes], request: bytes, cancelled: Cancelled) -> bytes | None:
        deadline = time.monotonic() + self._timeout_s
        to_send: bytes | None = request
        while time.monotonic() < deadline:
            try:
                return child.communicate(to_send, timeout=_POLL_S)[0]
            except subprocess.TimeoutExpired:
                to_send = None
            if cancelled():
                raise RunCancelledError("The run was cancelled while its files were read.")
        return None


def main() -> None:
    """Answer one question, read as JSON from standard input, as JSON on standard output."""
    parent_pid, memory_mib = map(int, sys.argv[1:])
    die_with_parent(parent_pid)
    leave_stopping_to_the_parent()
    answers = keep_answers_apart()
    limit_memory(memory_mib)
    _load_modules()
    request = json.load(sys.stdin)
    try:
        answer = _ANSWERS[request["do"]](request)
    except Exception as fault:  # noqa: BLE001 - the parent must hear of every fault; a crash would lose the reason
        answer = {"failed": describe(fault)}
    with os.fdopen(answers, "w", encoding="ascii") as pipe:
        json.dump(answer, pipe)


def _load_modules() -> None:
    """Import what the answers need, before there is a question."""
    import pipeline.content
    import pipeline.wholeness  # noqa: F401
    import sr_writer.report  # noqa: F401


def _decide(request: dict[str, Any]) -> dict[str, Any]:
    from pipeline.analysis import decide

    decision = decide([Path(path) for path in request["paths"]], _limits(request))
    return {"decision": decision.to_json()}


def _look(request: dict[str, Any]) -> dict[str, Any]:
    from pipeline.wholeness import look_and_decide

    whole, decision = look_and_decide([Path(path) for path in request["paths"]], _limits(request))
    return {"wholeness": asdict(whole), "decision": decision.to_json()}


def _same_content(request: dict[str, Any]) -> dict[str, Any]:
    from pipeline.content import same_content

    return {"same": [same_content(Path(a), Path(b)) for a, b in request["pairs"]]}


def _limits(request: dict[str, Any]) -> SelectionLimits:
    from pipeline.domain.limits import SelectionLimits

    return SelectionLimits(**request["limits"] | {"skip_patient_ids": tuple(request["limits"]["skip_patient_ids"])})


def _write_report(request: dict[str, Any]) -> dict[str, Any]:
    import hashlib

    from pydicom import dcmread

    from sr_writer.record import ReportRecord
    from sr_writer.report import build_report, encode

    headers = [dcmread(path, stop_before_pixels=True) for path in request["paths"]]
    dicom = encode(build_report(ReportRecord.from_json(request["record"]), headers))
    _write_durably(Path(request["target"]), dicom)
    return {"sha256": hashlib.sha256(dicom).hexdigest()}


def _write_durably(target: Path, content: bytes) -> None:
    """Write aside, sync, rename, sync the folder: after a power cut the file is whole or not there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


_ANSWERS = {"decide": _decide, "look": _look, "same_content": _same_content, "write_report": _write_report}

if __name__ == "__main__":
    main()
    os._exit(0)  # the parent waits for our end, and taking down so many modules takes 0.2 s

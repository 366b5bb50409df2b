"""Use case: one instance comes in and is stored and counted, or refused with a status that says why.

Success is answered only when file, name and row survive a power cut. The data set is never parsed here beyond
its four identifiers; what it is worth is found out in the worker.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

import structlog

from pipeline.domain.outcome import Code
from scp_node.identifiers import (
    Identifiers,
    NotPart10,
    Unreadable,
    is_conformant_uid,
    is_key,
    is_uid,
    read_identifiers,
    split_file,
)
from scp_node.ledger.arrivals import Arrival, LedgerUnavailableError, Note, Stored
from scp_node.ledger.states import EventKind, Purpose
from scp_node.spool import FileHeader

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

    from scp_node.ledger.arrivals import Arrivals
    from scp_node.ports import Clock
    from scp_node.spool import Placed, Spool

log = structlog.get_logger()

CT_CLASSES: Final = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.2",  # CT Image Storage
        "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT Image Storage
        "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT Image Storage
    }
)
STANDARD_ROOT: Final = "1.2.840.10008."


class Answer(Enum):
    """Every answer to a C-STORE: status, error comment (64 characters at most), what the sender should do.

    The only place where a C-STORE status is chosen. Never 0x0111 (senders stop at it) and never a warning
    (0xBxxx hides losses).

    References
    ----------
    PS3.4 Table B.2-1, PS3.7 Annex C.
    """

    STORED = (0x0000, "", "nothing")
    NO_ROOM = (0xA700, "Disk space is below the limit; send again later", "retry later")
    DATABASE_BUSY = (0xA700, "Database is busy; send again later", "retry later")
    DISK_FAILED = (0xA700, "Disk write failed; send again later", "retry later")
    NO_MEMORY = (0xA700, "Out of memory; send again later", "retry later")
    ODD_UID = (0xA900, "SOP Instance or Class UID of the command is not a UID", "give up, fix")
    OTHER_UID = (0xA900, "SOP UIDs of command and data set differ", "give up, fix")
    MISSING_UID = (0xA900, "SOP, Study or Series UID is missing or unusable", "give up, fix")
    UNPARSABLE = (0xC000, "Data set does not parse", "give up")
    TOO_LARGE = (0xC001, "Object is larger than this node takes", "give up")
    NOT_AUTHORISED = (0x0124, "This AE may not store here", "give up, ask the administrator")
    BUG = (0x0110, "Internal error {id}; see the log of the node", "retry a few times")

    @property
    def status(self) -> int:
        """The DIMSE status."""
        return self.value[0]

    @property
    def comment(self) -> str:
        """The error comment (0000,0902)."""
        return self.value[1]

    @property
    def advice(self) -> str:
        """What the sender should do, for the generated documentation."""
        return self.value[2]


@dataclass(frozen=True, slots=True)
class Incoming:
    """One C-STORE request: what the command says, and the data set as encoded.

    ``sha256`` is that of the data set, hex, where it is known already.
    """

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    dataset: bytes | bytearray
    calling_ae: str
    called_ae: str
    peer: str
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Received:
    """The answer to a C-STORE request.

    Attributes
    ----------
    status, comment
        For the wire; the comment is empty on success.
    answer
        Which row of the table it is.
    stored
        What the instance was; ``None`` when it was refused.
    """

    status: int
    comment: str
    answer: Answer
    stored: Stored | None = None


class Receiver:
    """Takes instances; one for the process, called by the threads of all associations.

    Parameters
    ----------
    spool, arrivals, clock
        Where the bytes go, where the row goes, and what time it is.
    keep_other_objects
        Whether the bytes of what is no CT image are kept.
    max_object_bytes
        A larger data set is refused.
    beside
        Makes a file's name durable while its row is committed; ``None``: one after the other (decision 0122).
    """

    def __init__(
        self,
        spool: Spool,
        arrivals: Arrivals,
        clock: Clock,
        *,
        keep_other_objects: bool,
        max_object_bytes: int,
        beside: Executor | None = None,
    ) -> None:
        self._spool = spool
        self._arrivals = arrivals
        self._clock = clock
        self._keep_other_objects = keep_other_objects
        self._max_object_bytes = max_object_bytes
        self._beside = beside

    def has_room(self) -> bool:
        """Whether there is space for more instances."""
        return self._spool.has_room()

    def receive(self, incoming: Incoming) -> Received:
        """Take one instance; never raises."""
        try:
            return self._receive(incoming)
        except LedgerUnavailableError as fault:
            return self._refused(Answer.DATABASE_BUSY, incoming, str(fault))
        except OSError as fault:
            return self._refused(Answer.DISK_FAILED, incoming, fault.strerror or type(fault).__name__)
        except MemoryError:
            return self._refused(Answer.NO_MEMORY, incoming)
        except Exception:  # a bug of ours: the library would answer 0xC211, which is final for many senders
            error_id = secrets.token_hex(4)
            log.exception("C-STORE failed by a bug", error_id=error_id, **_who(incoming))
            return Received(Answer.BUG.status, Answer.BUG.comment.format(id=error_id), Answer.BUG)

    def refuse_unauthorised(self, incoming: Incoming) -> Received:
        """Refuse an instance of an AE that may connect but not store."""
        return self._refused(Answer.NOT_AUTHORISED, incoming)

    def _receive(self, incoming: Incoming) -> Received:
        refusal = self._check_command(incoming)
        if refusal is not None:
            return self._refused(refusal, incoming)
        found = read_identifiers(incoming.dataset, incoming.transfer_syntax_uid)
        match _check_identifiers(found, incoming):
            case Identifiers() as identifiers:
                return self._store(incoming, identifiers)
            case Answer() as refusal:
                return self._quarantine(refusal, incoming, found)

    def _check_command(self, incoming: Incoming) -> Answer | None:
        if not is_uid(incoming.sop_instance_uid) or not is_uid(incoming.sop_class_uid):
            return Answer.ODD_UID
        if len(incoming.dataset) > self._max_object_bytes:
            return Answer.TOO_LARGE
        return None if self._spool.has_room() else Answer.NO_ROOM

    def _store(self, incoming: Incoming, identifiers: Identifiers) -> Received:
        purpose = self._purpose(incoming)
        path, settling = None, None
        if purpose is Purpose.CT or (purpose is Purpose.OTHER and self._keep_other_objects):
            placed = self._spool.place(_header(incoming), incoming.dataset)
            path, settling = placed.path, self._settle(placed)
        stored = self._arrivals.record(_arrival(incoming, identifiers, purpose, path, self._clock.now()))
        if settling is not None:
            settling.result()  # a row without its file is healed at the next start; Success waits for both
        if stored is Stored.CHANGED:
            log.warning("an instance arrived again with other content", **_who(incoming))
        return Received(Answer.STORED.status, "", Answer.STORED, stored)

    def _settle(self, placed: Placed) -> Future[None] | None:
        """Make a name durable, or have that done meanwhile."""
        if self._beside is not None:
            return self._beside.submit(placed.settle)
        placed.settle()
        return None

    def _purpose(self, incoming: Incoming) -> Purpose:
        if incoming.sop_class_uid in CT_CLASSES:
            return Purpose.CT
        return Purpose.OWN if self._arrivals.is_our_report(incoming.sop_instance_uid) else Purpose.OTHER

    def _quarantine(self, answer: Answer, incoming: Incoming, found: Identifiers | Unreadable) -> Received:
        path = self._spool.quarantine(_header(incoming), incoming.dataset)
        detail = found.text if isinstance(found, Unreadable) else answer.comment + "."
        text = (
            f"From {incoming.calling_ae} ({incoming.peer}): instance {incoming.sop_instance_uid} refused with "
            f"0x{answer.status:04X}. {detail} The bytes are kept as {path}."
        )
        study_uid = found.study_instance_uid if isinstance(found, Identifiers) else ""
        self._arrivals.note(
            [Note(EventKind.QUARANTINED, text, study_uid=study_uid if is_key(study_uid) else None)],
            self._clock.now(),
        )
        log.warning("instance quarantined", status=f"0x{answer.status:04X}", detail=detail, **_who(incoming))
        return Received(answer.status, answer.comment, answer)

    def _refused(self, answer: Answer, incoming: Incoming, detail: str = "") -> Received:
        who = _who(incoming)
        log.warning("instance refused", status=f"0x{answer.status:04X}", why=answer.name, detail=detail, **who)
        text = (
            f"From {incoming.calling_ae} ({incoming.peer}): instance {who['instance']} refused with "
            f"0x{answer.status:04X}. {answer.comment}."
        )
        try:
            self._arrivals.note([Note(EventKind.REFUSED, text, answer.name)], self._clock.now())
        except LedgerUnavailableError:
            log.warning("the refusal could not be noted: the database is not available")
        return Received(answer.status, answer.comment, answer)


def index_spool(spool: Spool, arrivals: Arrivals, clock: Clock, *, keep_other_objects: bool) -> tuple[int, int]:
    """Make files and rows agree again after a crash; gives the numbers of files indexed and of files lost.

    A file without a row was stored between its name and its commit: its sender got no success and may come
    again or not, and the file is complete either way.
    """
    known, seen = arrivals.paths(), set()
    indexed = 0
    for path in spool.objects():
        seen.add(path)
        if path not in known:
            indexed += _index(path, spool, arrivals, clock, keep_other_objects=keep_other_objects)
    lost = sorted(known - seen - arrivals.leaving())
    for path in lost:
        log.error("a file of the ledger is gone from the disk", path=path)
        arrivals.forget_file(path, clock.now())
    return indexed, len(lost)


def _index(path: str, spool: Spool, arrivals: Arrivals, clock: Clock, *, keep_other_objects: bool) -> bool:
    content = spool.read(path)
    part10 = split_file(content)
    if isinstance(part10, NotPart10):
        log.warning("a file of the spool is no DICOM file", path=path, detail=part10.text)
        return False
    incoming = Incoming(
        part10.sop_class_uid,
        part10.sop_instance_uid,
        part10.transfer_syntax_uid,
        content[part10.dataset_at :],
        part10.calling_ae or "UNKNOWN",
        part10.called_ae,
        "",
    )
    identifiers = _check_identifiers(read_identifiers(incoming.dataset, incoming.transfer_syntax_uid), incoming)
    is_ct = incoming.sop_class_uid in CT_CLASSES
    if isinstance(identifiers, Answer) or not (is_ct or keep_other_objects):
        return False
    purpose = Purpose.CT if is_ct else Purpose.OTHER
    now = clock.now()
    stored = arrivals.record(_arrival(incoming, identifiers, purpose, path, now))
    if stored is Stored.DUPLICATE:
        return False
    log.info("a file without a row was indexed", path=path)
    text = f"Instance {incoming.sop_instance_uid} was found on disk after a crash and counted in."
    arrivals.note([Note(EventKind.FILE_INDEXED, text, study_uid=identifiers.study_instance_uid)], now)
    return True


def _check_identifiers(found: Identifiers | Unreadable, incoming: Incoming) -> Identifiers | Answer:
    if isinstance(found, Unreadable):
        return Answer.UNPARSABLE
    sop_uids = (found.sop_class_uid, found.sop_instance_uid)
    if not all(map(is_key, (*sop_uids, found.study_instance_uid, found.series_instance_uid))):
        return Answer.MISSING_UID
    return found if sop_uids == (incoming.sop_class_uid, incoming.sop_instance_uid) else Answer.OTHER_UID


def _arrival(
    incoming: Incoming, identifiers: Identifiers, purpose: Purpose, path: str | None, now: float
) -> Arrival:
    return Arrival(
        sop_class_uid=incoming.sop_class_uid,
        sop_instance_uid=incoming.sop_instance_uid,
        study_uid=identifiers.study_instance_uid,
        series_uid=identifiers.series_instance_uid,
        transfer_syntax_uid=incoming.transfer_syntax_uid,
        sha256=incoming.sha256 or hashlib.sha256(incoming.dataset).hexdigest(),
        size_bytes=len(incoming.dataset),
        path=path,
        purpose=purpose,
        calling_ae=incoming.calling_ae,
        called_ae=incoming.called_ae,
        peer=incoming.peer,
        received_at=now,
        notes=_notes(incoming, identifiers, purpose),
        series_notes=_series_notes(incoming, identifiers),
    )


def _notes(incoming: Incoming, identifiers: Identifiers, purpose: Purpose) -> tuple[Note, ...]:
    if purpose is not Purpose.OWN:
        return ()
    text = f"Our own report {incoming.sop_instance_uid} came back from {incoming.calling_ae}; it is ignored."
    return (Note(EventKind.OWN_REPORT, text, study_uid=identifiers.study_instance_uid),)


def _series_notes(incoming: Incoming, identifiers: Identifiers) -> tuple[Note, ...]:
    """What is worth an event with the first instance of a series."""
    study_uid, series_uid = identifiers.study_instance_uid, identifiers.series_instance_uid
    notes = []
    if not incoming.sop_class_uid.startswith(STANDARD_ROOT):
        text = f"Series {series_uid} holds objects of the private class {incoming.sop_class_uid}; not analysed."
        notes.append(Note(EventKind.PRIVATE_CLASS, text, study_uid=study_uid))
    if not all(map(is_conformant_uid, (incoming.sop_instance_uid, study_uid, series_uid))):
        text = f"UIDs from {incoming.calling_ae} do not conform to PS3.5 section 9.1; they are taken as they are."
        notes.append(Note(EventKind.UID_NONCONFORMANT, text, Code.UID_NONCONFORMANT, study_uid))
    return tuple(notes)


def _header(incoming: Incoming) -> FileHeader:
    return FileHeader(
        incoming.sop_class_uid,
        incoming.sop_instance_uid,
        incoming.transfer_syntax_uid,
        incoming.calling_ae,
        incoming.called_ae,
    )


def _who(incoming: Incoming) -> dict[str, str]:
    """Fields for the log; a UID with foreign letters is not repeated, it could hold anything."""
    uid = incoming.sop_instance_uid
    return {
        "calling_ae": incoming.calling_ae,
        "peer": incoming.peer,
        "instance": uid if is_uid(uid) else "(not a UID)",
    }

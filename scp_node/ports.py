"""The shell's two seams: the clock, and an archive that takes reports.

Each has a second implementation in the tests; nothing else of the shell is abstract.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SendKind = Literal["delivered", "retry", "refused"]
STORAGE_COMMITMENT: Final = "1.2.840.10008.1.20.1"
STUDY_ROOT_FIND: Final = "1.2.840.10008.5.1.4.1.2.2.1"


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> float:
        """Seconds since the epoch, UTC."""


@dataclass(frozen=True, slots=True)
class SendResult:
    """How one exchange with an archive ended.

    Attributes
    ----------
    kind
        ``delivered``: the archive has it. ``retry``: it may pass by itself (no connection, out of resources,
        no answer). ``refused``: it will not pass before a person changes something on one side.
    status
        The DIMSE status of the answer; ``None`` when there was none.
    text
        One ASCII sentence for the administrator, without patient data.
    """

    kind: SendKind
    status: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Check:
    """Whether an archive that said Success has the report.

    Attributes
    ----------
    kind
        ``proven``: it has it. ``missing``: it has not. ``asked``: its answer comes later, on an association that it
        opens to us. ``unreachable``: it could not be asked. ``impossible``: it does not answer such questions.
    by
        How it was asked.
    text
        One ASCII sentence for the administrator, without patient data.
    """

    kind: Literal["proven", "missing", "asked", "unreachable", "impossible"]
    by: Literal["commitment", "query"] | None
    text: str


@dataclass(frozen=True, slots=True)
class ArchiveCounts:
    """How many instances of a study an archive says it holds; ``None`` where it does not say.

    Attributes
    ----------
    study
        Number of Study Related Instances (0020,1208).
    series
        Number of Series Related Instances (0020,1209) by Series Instance UID.
    """

    study: int | None
    series: Mapping[str, int | None]


class Catalogue(Protocol):
    """An archive that can be asked what it holds."""

    def counts(self, study_uid: str) -> ArchiveCounts | SendResult:
        """Ask how many instances it holds of a study, or say why it could not be asked."""


class Archive(Protocol):
    """One destination for reports: a PACS reached by C-STORE, or memory in tests."""

    def store(self, dicom: bytes) -> SendResult:
        """Send the bytes of one DICOM file, its data set unchanged."""

    def accepts(self, sop_class_uids: Sequence[str]) -> frozenset[str] | SendResult:
        """Say which of these SOP classes the archive takes, or why it could not be asked."""

    def echo(self) -> SendResult:
        """Ask whether the archive is there (C-ECHO)."""


class ProvableArchive(Archive, Protocol):
    """An archive that can be asked whether it has what it said it stored."""

    def commit(self, transaction_uid: str, sop_class_uid: str, sop_instance_uid: str) -> Check:
        """Ask the archive to commit itself to keeping one instance (PS3.4 Annex J)."""

    def holds(self, study_uid: str, series_uid: str, sop_instance_uid: str) -> Check:
        """Ask whether the archive has one instance (C-FIND, PS3.4 Annex C)."""

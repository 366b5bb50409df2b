"""The shell's two seams: the clock, and an archive that takes reports.

Each has a second implementation in the tests; nothing else of the shell is abstract.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

SendKind = Literal["delivered", "retry", "refused"]


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


class Archive(Protocol):
    """One destination for reports: a PACS reached by C-STORE, or memory in tests."""

    def store(self, dicom: bytes) -> SendResult:
        """Send the bytes of one DICOM file, its data set unchanged."""

    def accepts(self, sop_class_uids: Sequence[str]) -> frozenset[str] | SendResult:
        """Say which of these SOP classes the archive takes, or why it could not be asked."""

    def echo(self) -> SendResult:
        """Ask whether the archive is there (C-ECHO)."""

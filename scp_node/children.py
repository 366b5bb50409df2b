"""What the worker asks of its child processes, and how they fail, as its use cases see it.

The processes themselves live in ``detector_process`` and ``reader_process``; tests put in others.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.analysis import Decision
    from pipeline.domain.result import Analysis
    from pipeline.wholeness import Wholeness
    from sr_writer.record import ReportRecord

    Cancelled = Callable[[], bool]
    """Whether the run for which a child works was cancelled; asked about once a second."""

DECODING = "decoding"
"""The step of the detector's child before it holds a volume: a crash there is the images' doing."""


@dataclass(frozen=True, slots=True)
class ChildFailure:
    """A child ended without an answer.

    Attributes
    ----------
    during
        The last step it named; may be empty.
    text
        What happened, for a sentence: ASCII, no patient data.
    """

    during: str
    text: str


@dataclass(frozen=True, slots=True)
class WrittenReport:
    """A report's file is on disk; SHA-256 of its bytes, hex."""

    sha256: str


class TransientFaultError(Exception):
    """A fault that may pass by itself: the workflow engine tries the step again after a while."""


class RunCancelledError(Exception):
    """The run was cancelled or out of time while a child worked for it; the child was killed."""


class Reader(Protocol):
    """Short-lived children that open DICOM files."""

    def decide(self, paths: Sequence[Path], cancelled: Cancelled) -> Decision | ChildFailure:
        """Rank the series of a study by their headers."""

    def look(self, paths: Sequence[Path], cancelled: Cancelled) -> Wholeness | ChildFailure:
        """Say whether the images of a study form a whole volume."""

    def same_content(self, pairs: Sequence[tuple[Path, Path]], cancelled: Cancelled) -> list[bool] | ChildFailure:
        """Say of each pair of files whether they are one image in two encodings."""

    def write_report(
        self, record: ReportRecord, images: Sequence[Path], target: Path, cancelled: Cancelled
    ) -> WrittenReport | ChildFailure:
        """Write a record's SR to a file, durably, with the headers of these images."""


class SeriesDetector(Protocol):
    """The long-lived child that holds the networks."""

    def analyse(self, paths: Sequence[Path], cancelled: Cancelled) -> Analysis | ChildFailure:
        """Analyse the files of one series."""


def file_report(
    record: ReportRecord, images: Sequence[Path], folder: Path, reader: Reader, cancelled: Cancelled
) -> dict[str, Any]:
    """Write a record's SR under the storage folder and give what the ledger keeps of it.

    Raises
    ------
    TransientFaultError
        When the child failed; nothing is left behind, and another try writes the same bytes.
    """
    uid = record.sop_instance_uid
    name = hashlib.sha256(uid.encode("ascii")).hexdigest()[:32]
    path = Path("reports") / f"{name}.dcm"
    written = reader.write_report(record, images, folder / path, cancelled)
    if isinstance(written, ChildFailure):
        raise TransientFaultError(f"The report of series {record.image_series_instance_uid}: {written.text}.")
    return {
        "sop_instance_uid": uid,
        "sop_class_uid": record.sop_class_uid,
        "outcome": record.outcome.value,
        "record": record.to_json(),
        "path": str(path),
        "sha256": written.sha256,
    }

"""Asks an archive by C-FIND how many images it holds of a study; what that means is not decided here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydicom.dataset import Dataset
from pynetdicom import build_context

from scp_node.network.sender import DicomArchive
from scp_node.ports import STUDY_ROOT_FIND, ArchiveCounts, SendResult

if TYPE_CHECKING:
    from pynetdicom.association import Association

PENDING = (0xFF00, 0xFF01)
MOST_ANSWERS = 1000
"""More series than any study has: an archive that ignores the study's UID would answer with all it holds."""


class DicomCatalogue(DicomArchive):
    """A PACS asked by C-FIND at the levels STUDY and SERIES; made as :class:`DicomArchive` is.

    References
    ----------
    PS3.4 C.4.1 and C.6.2.1 (Study Root), PS3.4 C.3.4 (the counts are optional return keys).
    """

    def counts(self, study_uid: str) -> ArchiveCounts | SendResult:
        """Ask how many instances it holds of a study, or say why it could not be asked."""
        with self._associated([build_context(STUDY_ROOT_FIND)]) as exchange:
            if exchange.association is None:
                if exchange.nothing_accepted:
                    return SendResult("refused", None, "The archive does not answer C-FIND (Study Root) from us.")
                return exchange.failure
            study = find(exchange.association, _identifier("STUDY", study_uid))
            if isinstance(study, SendResult):
                return study
            series = find(exchange.association, _identifier("SERIES", study_uid))
            if isinstance(series, SendResult):
                return series
        of_study = [answer for answer in study if _text(answer, "StudyInstanceUID") == study_uid]
        return ArchiveCounts(
            _count(of_study[0], "NumberOfStudyRelatedInstances") if len(of_study) == 1 else None,
            {
                _text(answer, "SeriesInstanceUID"): _count(answer, "NumberOfSeriesRelatedInstances")
                for answer in series
                if _text(answer, "StudyInstanceUID") in {study_uid, ""}
            },
        )


def _identifier(level: str, study_uid: str) -> Dataset:
    asked = Dataset()
    asked.QueryRetrieveLevel = level
    asked.StudyInstanceUID = study_uid
    if level == "STUDY":
        asked.NumberOfStudyRelatedInstances = None
    else:
        asked.SeriesInstanceUID = ""
        asked.NumberOfSeriesRelatedInstances = None
    return asked


def find(association: Association, asked: Dataset) -> list[Dataset] | SendResult:
    """Collect the matches of one C-FIND; an answer cut short is no answer."""
    found: list[Dataset] = []
    try:
        for status, match in association.send_c_find(asked, STUDY_ROOT_FIND):
            code = status.get("Status")
            if code in PENDING and match is not None and len(found) < MOST_ANSWERS:
                found.append(match)
            elif code == 0x0000:
                return found
            elif code not in PENDING or len(found) >= MOST_ANSWERS:
                return _failed(association, code)
    except (OSError, RuntimeError, ValueError):  # the association ended under our hands
        pass
    return _failed(association, None)


def _failed(association: Association, status: int | None) -> SendResult:
    if association.is_established:
        association.abort()
    said = "gave no whole answer" if status is None else f"answered 0x{status:04X}"
    return SendResult("retry", status, f"The archive {said} to C-FIND.")


def _text(answer: Dataset, keyword: str) -> str:
    return str(answer.get(keyword) or "").strip(" \0")


def _count(answer: Dataset, keyword: str) -> int | None:
    """Read a count (IS); missing, empty or nonsense is ``None``."""
    try:
        count = int(answer.get(keyword))
    except (TypeError, ValueError):
        return None
    return count if count >= 0 else None

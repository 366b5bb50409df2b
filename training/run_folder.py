"""A finished run's folder: which files it holds, and ``run.json``, which says what the run was.

Who trains, searches or judges writes it with :func:`write_run_card`, last of all files; the report reads it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

RUN_CARD = "run.json"
SUBMISSION = "submission.csv"
ANNOTATIONS = "annotations.csv"
EXCLUDED = "excluded.csv"
SERIESUIDS = "seriesuids.csv"
FROC = "froc.json"
CANDIDATES = "candidates.json"

KINDS = ("candidates", "evaluate", "crossval")
SCREENING = ("fcn", "fcn+osf", "modern")
REDUCTION = ("none", "deepnet", "resnet", "resnet-hl")


class RunFolderError(Exception):
    """A folder that is not that of a finished run; the text names the file, what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class RunCard:
    """What a finished run was.

    Attributes
    ----------
    kind
        ``candidates`` (stage 1 alone, over scans), ``evaluate`` (the whole detector) or ``crossval`` (each scan
        by the fold that did not see it).
    recipe
        Name of the training recipe.
    screening
        Stage 1: ``fcn`` trained without online sample filtering, ``fcn+osf`` with it, or ``modern``.
    reduction
        Stage 2: ``none``, ``deepnet``, ``resnet`` or ``resnet-hl`` (with the hybrid loss).
    seed
        Of the training.
    fold
        Which fold was the test set; None where the scans of all folds are together.
    folds
        How many folds the data were divided into; 0 where there were none.
    data_set
        Name of the data, as ``LUNA16``.
    simulated
        Whether nodules or scans are simulated: such numbers are never put beside published ones.
    weights_sha256
        Of each weights file that spoke (hex).
    scans
        Where the images lie (``<seriesuid>.mhd``, or one folder of DICOM a series), relative to the run folder or
        absolute; empty where they are not kept.
    """

    kind: str
    recipe: str
    screening: str
    reduction: str
    seed: int
    fold: int | None
    folds: int
    data_set: str
    simulated: bool
    weights_sha256: tuple[str, ...]
    scans: str = ""


@dataclass(frozen=True, slots=True)
class CandidateCount:
    """How good stage 1 alone is at its threshold; ``candidates.json``.

    Attributes
    ----------
    scans, nodules, found, candidates
        Counts over all scans.
    threshold
        Score at or above which a place is a candidate.
    """

    scans: int
    nodules: int
    found: int
    candidates: int
    threshold: float

    @property
    def sensitivity(self) -> float:
        """Part of the nodules with a candidate in them."""
        return self.found / max(self.nodules, 1)

    @property
    def per_scan(self) -> float:
        """Candidates a scan."""
        return self.candidates / max(self.scans, 1)


def write_run_card(folder: Path, card: RunCard) -> None:
    """Write ``run.json``; a folder that has it is finished, so this comes last."""
    _write(folder / RUN_CARD, asdict(card))


def read_run_card(folder: Path) -> RunCard:
    """Read ``run.json``.

    Raises
    ------
    RunFolderError
        When it is missing, damaged, or says something unknown.
    """
    found = _read(folder / RUN_CARD, RunCard, optional=("scans",))
    path = folder / RUN_CARD
    for key, known in (("kind", KINDS), ("screening", SCREENING), ("reduction", REDUCTION)):
        if found[key] not in known:
            raise RunFolderError(f"{path}: {key} is '{found[key]}'; known are {', '.join(known)}.")
    return RunCard(**found | {"weights_sha256": tuple(found["weights_sha256"])})


def write_candidate_count(folder: Path, count: CandidateCount) -> None:
    """Write ``candidates.json``."""
    _write(folder / CANDIDATES, asdict(count))


def read_candidate_count(folder: Path) -> CandidateCount | None:
    """Read ``candidates.json``; None where the run has none.

    Raises
    ------
    RunFolderError
        When it is damaged.
    """
    path = folder / CANDIDATES
    return CandidateCount(**_read(path, CandidateCount)) if path.is_file() else None


def _write(path: Path, values: dict[str, Any]) -> None:
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(values, indent=1) + "\n", encoding="ascii")
    aside.replace(path)


def _read(path: Path, kind: type, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    if not path.is_file():
        raise RunFolderError(f"{path} is missing: the run is not finished, or this is not a run's folder.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFolderError(f"{path} is not JSON ({error}); repeat the run's last command.") from error
    known = {field.name for field in fields(kind)}
    keys = set(found) if isinstance(found, dict) else set()
    wrong = sorted((known - keys - set(optional)) | (keys - known))
    if wrong:
        expected = ", ".join(sorted(known))
        raise RunFolderError(f"{path}: missing or unknown: {', '.join(wrong)}; expected {expected}.")
    return dict(found)

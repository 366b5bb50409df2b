"""The node's own detector over scans in LUNA16's layout, restartable; marks out, as the judge takes them.

No series selection stands before it: every listed scan is searched, and one that cannot be is told by name.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pipeline.detect.detector import load_detector
from pipeline.domain.limits import SelectionLimits
from pipeline.domain.outcome import Refusal
from pipeline.reading import read_metaimage
from training import luna16
from training.graded import grade
from training.judging import judge_run
from training.marks import Mark
from training.run_folder import ANNOTATIONS, EXCLUDED, SERIESUIDS, SUBMISSION, RunCard, write_run_card
from training.scans import LEAST_LUNG_L, UnusableScanError
from training.worst import worst_marks, write_worst

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from pipeline.detect.weights import Card, Weights
    from pipeline.ports import Detector
    from training.download import Download, DownloadedScan
    from training.froc import Annotation
    from training.judgement import Judgement


GRADED = "graded.json"
SUBMISSION_COLUMNS = ("seriesuid", *luna16.POSITION, "probability", "diameter_mm", "raw_score")


def search_download(
    detector: Detector, scans: Sequence[DownloadedScan], kept: Path
) -> Iterator[tuple[int, int, str, tuple[Mark, ...]]]:
    """Search scans with the detector, or read what an earlier call has found.

    Parameters
    ----------
    detector
        The node's.
    scans
        Which ones.
    kept
        Folder for one file a scan; those of other weights are searched again.

    Yields
    ------
    tuple
        How many scans are done, how many there are, the last one's UID and marks.

    Raises
    ------
    UnusableScanError
        When a scan cannot be read or is refused.
    """
    kept.mkdir(parents=True, exist_ok=True)
    weights = detector.model.sha256
    for done, scan in enumerate(scans, 1):
        path = kept / f"{scan.uid}.json"
        marks = _read(path, weights)
        if marks is None:
            marks = search_one(detector, scan)
            rows = [[*m.position_mm, m.probability, m.diameter_mm, m.raw_score] for m in marks]
            luna16.write_text(path, json.dumps({"weights": weights, "marks": rows}) + "\n")
        yield done, len(scans), scan.uid, marks


def search_one(detector: Detector, scan: DownloadedScan) -> tuple[Mark, ...]:
    """Search one scan; raises as :func:`search_download`."""
    volume = read_metaimage(scan.path)
    answer = volume if isinstance(volume, Refusal) else detector.detect(volume)
    if isinstance(answer, Refusal):
        raise UnusableScanError(f"{scan.path.name} cannot be searched: {answer.text}")
    return tuple(
        Mark(f.position_lps_mm, f.probability, f.diameter_mm, f.probability if f.raw_score is None else f.raw_score)
        for f in answer.findings
    )


def _read(path: Path, weights: str) -> tuple[Mark, ...] | None:
    if not path.exists():
        return None
    kept = json.loads(path.read_text(encoding="ascii"))
    if kept["weights"] != weights:
        return None
    return _marks(kept["marks"])


def _marks(rows: Sequence[Sequence[float]]) -> tuple[Mark, ...]:
    return tuple(Mark((x, y, z), p, d, raw) for x, y, z, p, d, raw in rows)


def judging_detector(weights: str | Path, device: str = "auto") -> Detector:
    """Load the node's detector for judging: small lungs are believed, as everywhere in training."""
    return load_detector(weights, device=device, limits=SelectionLimits(min_lung_l=LEAST_LUNG_L))


def kept_marks(kept: Path, uids: Sequence[str]) -> dict[str, tuple[Mark, ...]]:
    """Read the marks that :func:`search_download` kept.

    Raises
    ------
    OSError
        When a scan was not searched.
    """
    return {uid: _marks(json.loads((kept / f"{uid}.json").read_text(encoding="ascii"))["marks"]) for uid in uids}


def judge_marks(
    folder: Path,
    download: Download,
    marks: Mapping[str, Sequence[Mark]],
    weights: Sequence[Weights],
    data_set: str,
) -> tuple[Judgement, dict[str, Any] | None]:
    """Judge marks and leave a run folder, with the surest false marks on scans without nodules as pictures.

    Returns
    -------
    Judgement
        By LUNA16's rules.
    dict or None
        On a cohort ``graded.json``: by size, kind and place.
    """
    write_judged_tables(folder, marks, download.included, download.excluded)
    judgement = judge_run(folder)
    graded = None
    if download.simulated:
        graded = grade(download.root, marks, download.excluded)
        luna16.write_text(folder / GRADED, json.dumps(graded, indent=1) + "\n")
    write_worst(folder, worst_marks(download, marks))
    first = weights[0].card
    card = RunCard(
        kind="evaluate",
        recipe=first.recipe,
        screening="modern" if first.screening.network == "modern" else "fcn+osf",
        reduction=_second_stage(first),
        seed=first.seed,
        fold=None,
        folds=0,
        data_set=data_set,
        simulated=download.simulated,
        weights_sha256=tuple(w.sha256 for w in weights),
        scans=str(download.root.resolve()),
    )
    write_run_card(folder, card)
    return judgement, graded


def _second_stage(card: Card) -> str:
    if card.reduction is None:
        return "none"
    widths = card.reduction.widths
    if not widths.skips:
        return "deepnet"
    return "resnet-hl" if widths.regression else "resnet"


def write_judged_tables(
    folder: Path,
    marks: Mapping[str, Sequence[Mark]],
    included: Mapping[str, Sequence[Annotation]],
    excluded: Mapping[str, Sequence[Annotation]],
) -> None:
    """Write what the judge needs: marks, and the findings of the same series alone.

    Judging a fold with the nodules of all folds is the commonest error seen in public threads.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = (
        [uid, *(f"{v:.6f}" for v in m.position_mm), repr(m.probability), f"{m.diameter_mm:.3f}", repr(m.raw_score)]
        for uid, found in marks.items()
        for m in found
    )
    luna16.write_table(folder / SUBMISSION, SUBMISSION_COLUMNS, rows)
    for name, table in ((ANNOTATIONS, included), (EXCLUDED, excluded)):
        findings = ([uid, *a.position_mm, a.diameter_mm] for uid in marks for a in table.get(uid, ()))
        luna16.write_table(folder / name, luna16.ANNOTATION_COLUMNS, findings)
    luna16.write_text(folder / SERIESUIDS, "".join(f"{uid}\n" for uid in marks))

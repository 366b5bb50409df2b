"""Stage 1 over prepared scans: candidates, recall against candidates per scan, and the threshold that keeps enough.

Candidates are searched once at a low floor. Non-maximum suppression keeps the higher score, so those of a higher
threshold are exactly the ones above it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.detect.placement import choose
from pipeline.detect.screen import make_screening
from pipeline.detect.weights import FCN_SCREENING, MODERN_SCREENING
from training import luna16
from training.reduction import FLOOR
from training.run_folder import CandidateCount
from training.sampling import SPACING
from training.scans import UnusableScanError, load_scan, searchable
from training.screening import make_network

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from pipeline.detect.nets.fcn import FCN
    from pipeline.detect.nets.modern import ModernNet
    from training.recipes import ScreeningRecipe
    from training.scans import TrainingScan

KEPT_PART = 0.98
"""Part of the validation nodules that the threshold must keep."""

PAPER_THRESHOLD = 0.85
MOST_A_SCAN = 1000
TABLE_RATES = (1, 2, 5, 10, 20, 50, 100, 200, 300)
"""Candidates a scan at which the table reads the curve."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Candidates of one scan, best first.

    Attributes
    ----------
    name
        Of the scan.
    index_zyx, positions_mm
        ``(n, 3)``: voxel index on the networks' grid, and x, y, z in LPS mm.
    scores
        ``(n,)``, falling.
    nodules
        For each nodule the best score of a candidate in it; 0 where there is none.
    """

    name: str
    index_zyx: NDArray[np.float64]
    positions_mm: NDArray[np.float64]
    scores: NDArray[np.float64]
    nodules: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RecallPoint:
    """What a threshold keeps: part of the nodules, and candidates a scan."""

    threshold: float
    recall: float
    candidates_per_scan: float


@dataclass(frozen=True, slots=True)
class Threshold:
    """The chosen threshold, and whether it keeps the part of the nodules that was asked for."""

    point: RecallPoint
    kept_enough: bool


class Screener:
    """A trained first stage, ready to search prepared scans."""

    def __init__(
        self, stage: ScreeningRecipe, weights: Mapping[str, torch.Tensor], *, device: str = "auto"
    ) -> None:
        network: ModernNet | FCN = make_network(stage)  # type: ignore[assignment]
        network.load_state_dict(weights)
        base = MODERN_SCREENING if stage.network == "modern" else FCN_SCREENING
        spec = replace(base, widths=stage.widths, neck=stage.neck, floor=FLOOR, cap=MOST_A_SCAN)
        self._screening = make_screening(network.eval(), spec, choose(device, "auto"))

    def search(self, scan: TrainingScan) -> Candidates:
        """Find the candidates of a scan.

        Raises
        ------
        UnusableScanError
            When no lungs are found, or the scan was prepared without its place in the patient.
        """
        if scan.grid is None:
            raise UnusableScanError(f"{scan.name} was prepared by an older version; prepare it again.")
        found = self._screening.candidates(searchable(scan), lambda _: None)
        index = np.asarray([p.index_zyx for p in found], np.float64).reshape(-1, 3)
        scores = np.asarray([p.score for p in found], np.float64)
        best = [
            float(scores[np.linalg.norm((index - row[:3]) * SPACING, axis=1) < row[3] / 2].max(initial=0.0))
            for row in scan.nodules
        ]
        positions = np.asarray(scan.grid.index_to_lps(index), np.float64)
        return Candidates(scan.name, index, positions, scores, np.asarray(best, np.float64))


def search_scans(
    screener: Screener, scans: Path, names: Sequence[str], kept: Path
) -> Iterator[tuple[int, int, Candidates]]:
    """Search scans, or read what an earlier call has found.

    Parameters
    ----------
    screener
        The first stage.
    scans, names
        Folder of prepared scans, and which of them.
    kept
        Folder for one file a scan, from which an interrupted search goes on.

    Yields
    ------
    tuple
        How many scans are done, how many there are, the last one's candidates.
    """
    kept.mkdir(parents=True, exist_ok=True)
    for done, name in enumerate(names, 1):
        path = kept / f"{name}.json"
        if not path.exists():
            save_candidates(path, screener.search(load_scan(scans / f"{name}.npz")))
        yield done, len(names), load_candidates(path)


def save_candidates(path: Path, found: Candidates) -> None:
    """Write the candidates of a scan, aside first, then renamed."""
    values = {
        "index_zyx": found.index_zyx.tolist(),
        "positions_mm": found.positions_mm.tolist(),
        "scores": found.scores.tolist(),
        "nodules": found.nodules.tolist(),
    }
    luna16.write_text(path, json.dumps(values) + "\n")


def load_candidates(path: Path) -> Candidates:
    """Read what :func:`save_candidates` wrote."""
    values = json.loads(path.read_text(encoding="ascii"))
    return Candidates(
        path.stem,
        np.asarray(values["index_zyx"], np.float64).reshape(-1, 3),
        np.asarray(values["positions_mm"], np.float64).reshape(-1, 3),
        np.asarray(values["scores"], np.float64),
        np.asarray(values["nodules"], np.float64),
    )


def recall_at(scans: Sequence[Candidates], threshold: float) -> RecallPoint:
    """Tell what a threshold keeps; scans without nodules count for the candidates alone."""
    best = np.concatenate([s.nodules for s in scans]) if scans else np.empty(0)
    kept = sum(int((s.scores >= threshold).sum()) for s in scans)
    found = int((best >= threshold).sum()) if threshold > 0 else int((best > 0).sum())
    return RecallPoint(threshold, found / max(len(best), 1), kept / max(len(scans), 1))


def recall_curve(scans: Sequence[Candidates]) -> list[RecallPoint]:
    """Give the points at which a nodule is gained as the threshold falls, and the floor."""
    best = np.unique(np.concatenate([s.nodules for s in scans])) if scans else np.empty(0)
    return [recall_at(scans, float(t)) for t in (*best[best > 0][::-1], FLOOR)]


def recall_table(scans: Sequence[Candidates]) -> list[RecallPoint]:
    """Give the lowest threshold that leaves so many candidates a scan on average, for each of ``TABLE_RATES``."""
    scores = np.sort(np.concatenate([s.scores for s in scans]))[::-1] if scans else np.empty(0)
    points = []
    for rate in TABLE_RATES:
        count = rate * len(scans)
        if 0 < count <= len(scores):
            points.append(recall_at(scans, float(scores[count - 1])))
    return points


def choose_threshold(scans: Sequence[Candidates], part: float = KEPT_PART) -> Threshold:
    """Choose the highest threshold that keeps a part of the nodules; the floor where even that does not.

    References
    ----------
    The paper's 0.85 comes from a grid search on its validation set (section 3.1); another training's scores have
    another scale.
    """
    best = np.sort(np.concatenate([s.nodules for s in scans]))[::-1] if scans else np.empty(0)
    needed = int(np.ceil(part * len(best) - 1e-9))
    if needed == 0 or best[needed - 1] <= 0:
        return Threshold(recall_at(scans, FLOOR), kept_enough=False)
    return Threshold(recall_at(scans, float(best[needed - 1])), kept_enough=True)


@dataclass(frozen=True, slots=True)
class Summary:
    """What a search found: our threshold and the paper's, the table, and the count for the report."""

    ours: RecallPoint
    papers: RecallPoint
    kept_enough: bool
    table: tuple[RecallPoint, ...]
    count: CandidateCount


def write_search(
    out: Path, judged: Sequence[Candidates], chosen_on: Sequence[Candidates], part: float = KEPT_PART
) -> Summary:
    """Choose the threshold on some scans, tell what it keeps on others, and write both as files.

    Parameters
    ----------
    out
        Folder for ``candidates.csv``, ``recall.csv``, ``recall.json`` and ``recall.png``.
    judged, chosen_on
        Scans to tell of, and those on which the threshold is chosen.
    part
        Part of the nodules that it keeps there.
    """
    chosen = choose_threshold(chosen_on, part)
    ours, papers = (recall_at(judged, t) for t in (chosen.point.threshold, PAPER_THRESHOLD))
    table = tuple(recall_table(judged))
    nodules = sum(len(scan.nodules) for scan in judged)
    write_candidates(out / "candidates.csv", judged, ours.threshold)
    rows = ([p.threshold, p.recall, p.candidates_per_scan] for p in recall_curve(judged))
    luna16.write_table(out / "recall.csv", ("threshold", "recall", "candidates_per_scan"), rows)
    said = {
        "scans": len(judged),
        "nodules": nodules,
        "chosen_on": {"scans": len(chosen_on), "nodules": sum(len(scan.nodules) for scan in chosen_on)},
        "kept_enough": chosen.kept_enough,
        "ours": asdict(ours),
        "papers": asdict(papers),
        "table": [asdict(p) for p in table],
    }
    luna16.write_text(out / "recall.json", json.dumps(said, indent=1) + "\n")
    draw_recall(out / "recall.png", judged, ours)
    found, kept = round(ours.recall * nodules), round(ours.candidates_per_scan * len(judged))
    count = CandidateCount(len(judged), nodules, found, kept, ours.threshold)
    return Summary(ours, papers, chosen.kept_enough, table, count)


def draw_recall(path: Path, scans: Sequence[Candidates], chosen: RecallPoint) -> None:
    """Draw recall against candidates a scan, the chosen threshold marked; PNG."""
    from matplotlib.figure import Figure

    curve = recall_curve(scans)
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.subplots()
    x = [max(p.candidates_per_scan, 0.1) for p in curve]
    axes.plot(x, [p.recall for p in curve], drawstyle="steps-post")
    axes.plot(
        [max(chosen.candidates_per_scan, 0.1)], [chosen.recall], "o", label=f"threshold {chosen.threshold:.3f}"
    )
    axes.set(xscale="log", xlabel="candidates a scan", ylabel="recall", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def write_candidates(path: Path, scans: Sequence[Candidates], threshold: float) -> None:
    """Write ``seriesuid,coordX,coordY,coordZ,probability`` of all candidates from a threshold on."""
    columns = ("seriesuid", *luna16.POSITION, "probability")
    rows = (
        [scan.name, *(f"{v:.6f}" for v in position), repr(float(score))]
        for scan in scans
        for position, score in zip(scan.positions_mm, scan.scores, strict=True)
        if score >= threshold
    )
    luna16.write_table(path, columns, rows)

"""Leave one scan out: for every seed and every real scan a model that never saw its person, judged on it alone.

Each scan's folder keeps checkpoint, weights and judged tables, and is passed over when they are there: a killed run
goes on where it was, and several processes can share the work.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.domain.finding import Finding
from training import luna16
from training.crossval import SAW, WEIGHTS
from training.download import DownloadedScan
from training.evaluate import Evaluated, curve_of, evaluate_path, truth_rows
from training.export import export, load_checkpoint
from training.folds import refuse_seen
from training.froc import RATES, Annotation
from training.judge_tables import read_annotations, read_findings, read_series
from training.marks import Mark
from training.run_folder import ANNOTATIONS, EXCLUDED, SERIESUIDS, SUBMISSION
from training.scans import person_of, read_truth
from training.screening import train_screening
from training.searching import judging_detector, search_one, write_judged_tables

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pipeline.ports import Detector
    from training.evaluate import TruthRow
    from training.recipes import Recipe

TABLE = "left-out.json"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What is done.

    Attributes
    ----------
    recipe
        Of stage 1; its seed is replaced.
    scans
        Folder of prepared scans, real ones and phantoms.
    series
        Folder with a folder of DICOM, or a ``.mhd``, for each real scan, named as the prepared one.
    truth
        Folder with ``nodules.csv`` and ``excluded.csv``.
    run
        Where everything is kept, ``seed1/NAME`` and so on.
    start
        Checkpoint to begin from, which must not have seen a real scan; None for untrained networks.
    """

    recipe: Recipe
    scans: Path
    series: Path
    truth: Path
    run: Path
    start: Path | None = None

    def folder(self, seed: int, name: str) -> Path:
        """Give the folder of a seed's model that leaves a scan out."""
        return self.run / f"seed{seed}" / name

    def persons(self) -> dict[str, str]:
        """Tell whose scan each prepared one is."""
        return {path.stem: person_of(path) for path in sorted(self.scans.glob("*.npz"))}

    def names(self) -> list[str]:
        """List the real scans."""
        return [name for name in self.persons() if not name.startswith("phantom")]

    def judged(self, seed: int, name: str) -> bool:
        """Whether a scan has been judged already."""
        return (self.folder(seed, name) / SERIESUIDS).exists()


@dataclass(frozen=True, slots=True)
class SeedResult:
    """All scans of one seed, each judged by the model that left it out.

    Attributes
    ----------
    nodules
        What became of each.
    found_with_list, found_without_list
        Nodules found at each of LUNA16's rates of false marks a scan, scans pooled; its excluded list applied, or
        not.
    among_100
        Nodules with a mark among their scan's first hundred.
    diameter_error_mm
        Mean absolute error over the nodules found.
    centre_error_mm
        Median distance over the nodules found.
    """

    nodules: tuple[TruthRow, ...]
    found_with_list: dict[str, float]
    found_without_list: dict[str, float]
    among_100: int
    diameter_error_mm: float
    centre_error_mm: float


def learn_and_judge(plan: LeftOut, seed: int, name: str, *, workers: int = 1) -> None:
    """Train one model without a scan, and judge it there.

    What the model may see is written before it sees it (decision 0086).

    Raises
    ------
    LeakError
        When an interrupted run of this folder saw the scan or its person.
    UnusableScanError
        When the scan cannot be analysed.
    """
    folder, persons = plan.folder(seed, name), plan.persons()
    folder.mkdir(parents=True, exist_ok=True)
    seen = [other for other, person in persons.items() if person != persons[name]]
    if (folder / SAW).exists():
        seen = json.loads((folder / SAW).read_text(encoding="ascii"))["seen"]
    refuse_seen([name], seen, persons)
    luna16.write_text(folder / SAW, json.dumps({"seen": seen}) + "\n")
    start = load_checkpoint(plan.start)[1] if plan.start else None
    recipe = replace(plan.recipe, seed=seed)
    checkpoint = train_screening(recipe, plan.scans, seen, folder, workers=workers, start=start)
    export(checkpoint, folder / WEIGHTS, model_version=f"without {name}, seed {seed}")
    _judge(plan, folder, name)


def _judge(plan: LeftOut, folder: Path, name: str) -> None:
    truth = read_truth(plan.truth, name)
    uid, marks = _search(judging_detector(folder / WEIGHTS), plan.series / name)
    included, excluded = ([Annotation(at, d) for at, d in rows] for rows in (truth.nodules, truth.ignored))
    write_judged_tables(folder, {uid: marks}, {uid: included}, {uid: excluded})


def _search(detector: Detector, path: Path) -> tuple[str, Sequence[Mark]]:
    """Search a folder of DICOM, or the ``.mhd`` beside it; give the series UID and the marks."""
    if not path.is_dir():
        image = path.with_name(f"{path.name}.mhd")
        return path.name, search_one(detector, DownloadedScan(path.name, -1, image, path.name))
    found = evaluate_path(detector, path, {}, {})
    marks = [Mark(f.position_lps_mm, f.probability, f.diameter_mm, f.raw_score or 0.0) for f in found.findings]
    return found.series_instance_uid, marks


def read_seed(plan: LeftOut, seed: int) -> SeedResult:
    """Pool the scans of a seed.

    Raises
    ------
    OSError
        When a scan has not been judged yet.
    """
    scans = [_read(plan.folder(seed, name), name) for name in plan.names()]
    rows = tuple(row for scan in scans for row in truth_rows(scan))
    found = [r for r in rows if r.found_diameter_mm is not None and r.distance_mm is not None]
    return SeedResult(
        nodules=rows,
        found_with_list=_found(scans, len(rows), with_list=True),
        found_without_list=_found(scans, len(rows), with_list=False),
        among_100=len(found),
        diameter_error_mm=_mean([abs((r.found_diameter_mm or 0) - r.diameter_mm) for r in found]),
        centre_error_mm=_median([r.distance_mm or 0 for r in found]),
    )


def _read(folder: Path, name: str) -> Evaluated:
    (uid,) = read_series(folder / SERIESUIDS)
    rows = read_findings(folder / SUBMISSION).get(uid, [])
    findings = (Finding(m.position_mm, diameter or 0.0, m.probability) for m, diameter in rows)
    nodules, ignored = (tuple(read_annotations(folder / file).get(uid, ())) for file in (ANNOTATIONS, EXCLUDED))
    return Evaluated(name, uid, nodules, ignored, tuple(sorted(findings, key=lambda f: -f.probability)))


def _found(scans: Sequence[Evaluated], nodules: int, *, with_list: bool) -> dict[str, float]:
    at = curve_of(scans, with_ignored=with_list).at(RATES)
    return {f"{rate:g}": round(float(s) * nodules, 3) for rate, s in zip(RATES, at, strict=True)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


def median_of(results: Sequence[SeedResult]) -> dict[str, Any]:
    """Give for each figure its median over the seeds."""
    rates = list(results[0].found_with_list)
    return {
        "nodules": len(results[0].nodules),
        "among_100": _median([r.among_100 for r in results]),
        "found_with_list": {rate: _median([r.found_with_list[rate] for r in results]) for rate in rates},
        "found_without_list": {rate: _median([r.found_without_list[rate] for r in results]) for rate in rates},
        "diameter_error_mm": _median([r.diameter_error_mm for r in results]),
        "centre_error_mm": _median([r.centre_error_mm for r in results]),
    }


def _median(values: Sequence[float]) -> float:
    return round(float(statistics.median(values)), 3) if values else 0.0


def write_table(plan: LeftOut, seeds: Sequence[int]) -> dict[str, Any] | None:
    """Write ``left-out.json`` over the seeds whose scans are all judged; None while there is no such seed."""
    whole = [seed for seed in seeds if all(plan.judged(seed, name) for name in plan.names())]
    if not whole:
        return None
    results = {seed: read_seed(plan, seed) for seed in whole}
    table = {
        "recipe": plan.recipe.name,
        "median": median_of(list(results.values())),
        "seeds": {str(seed): asdict(result) for seed, result in results.items()},
    }
    luna16.write_text(plan.run / TABLE, json.dumps(table, indent=1) + "\n")
    return table


def table_lines(table: Mapping[str, Any]) -> list[str]:
    """Put the table in lines: every nodule of every seed, then the medians."""
    lines = []
    for seed, result in table["seeds"].items():
        for row in result["nodules"]:
            nodule = f"seed {seed}: {row['scan']} {row['diameter_mm']:.1f} mm"
            if row["rank"] is None:
                lines.append(f"{nodule}: missed")
                continue
            lines.append(
                f"{nodule}: rank {row['rank']}, {row['false_before']} false before, p {row['probability']:.3f}, "
                f"{row['found_diameter_mm']:.1f} mm, {row['distance_mm']:.1f} mm off"
            )
    median = table["median"]
    lines.append(f"median of {len(table['seeds'])} seeds, {median['nodules']} nodules:")
    lines.append(f"among 100 candidates a scan {median['among_100']:g}")
    for key, words in (("found_with_list", "with"), ("found_without_list", "without")):
        found = ", ".join(f"{n:.1f} at {rate}" for rate, n in median[key].items())
        lines.append(f"{words} the excluded list {found} false marks a scan")
    lines.append(
        f"diameter {median['diameter_error_mm']:.2f} mm off, centre {median['centre_error_mm']:.2f} mm off"
    )
    return lines

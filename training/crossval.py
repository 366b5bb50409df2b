"""Cross-validation of both stages: trained, thresholded and calibrated without the test scans, then judged on them.

Each step leaves its result in the fold's folder and is passed over when that is there, so that a killed run goes on
at the step it was in; training steps go on from their checkpoints.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pipeline.detect.weights import TrainingData
from training import luna16
from training.calibration import CalibrationError
from training.candidates import Screener, choose_threshold, recall_at, search_scans
from training.export import PROVISIONAL, export, load_checkpoint
from training.folds import Fold, LeakError, Member, check, divide, refuse_seen
from training.froc import ScoredMark
from training.held_out import NO_CHANGE, HeldOutScan, choose_points, fit, measure
from training.judging import judge_run
from training.reduction import train_reduction
from training.run_folder import (
    CandidateCount,
    RunCard,
    read_candidate_count,
    read_run_card,
    write_candidate_count,
    write_run_card,
)
from training.scans import person_of
from training.screening import train_screening
from training.searching import judging_detector, kept_marks, search_download, write_judged_tables
from training.team import Team, device_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from training.candidates import Candidates
    from training.download import Download
    from training.marks import Mark
    from training.recipes import Recipe

    Say = Callable[[str, int, int, str], None]

PLAN = "plan.json"
SAW = "saw.json"
WEIGHTS = "weights.safetensors"
CHOSEN = "chosen.json"
POOLED = "pooled"


class PlanError(Exception):
    """A cross-validation that cannot be begun or gone on with; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """A cross-validation.

    Attributes
    ----------
    recipe
        Of both stages.
    download
        The scans as LUNA16 lays them out; the detector judges these.
    cache
        Folder of the same scans, prepared.
    run
        Where everything is kept: ``fold0`` and so on, and ``pooled``.
    members
        Every scan with person and subset.
    folds
        All folds of the division.
    data_set
        Name of the data, for the cards.
    """

    recipe: Recipe
    download: Download
    cache: Path
    run: Path
    members: tuple[Member, ...]
    folds: tuple[Fold, ...]
    data_set: str

    @property
    def persons(self) -> dict[str, str]:
        """Whose scan each UID is."""
        return {m.uid: m.person for m in self.members}

    def folder(self, fold: Fold) -> Path:
        """Give the folder of a fold."""
        return self.run / f"fold{fold.number}"


def plan(recipe: Recipe, download: Download, cache: Path, run: Path, data_set: str) -> CrossValidation:
    """Divide the scans, and write the plan or compare it with the one that is being gone on with.

    Raises
    ------
    PlanError
        When scans are not prepared, there are too few, or the run was begun with another recipe or other scans.
    LeakError
        When a person's scans lie in several subsets.
    """
    missing = [s.uid for s in download.scans if not (cache / f"{s.uid}.npz").is_file()]
    if missing:
        raise PlanError(
            f"{len(missing)} scans are not prepared, for example {missing[0]}; run prepare --out {cache} first."
        )
    if recipe.screening.network == "fcn" and not recipe.reduction.ship:
        raise PlanError(
            f"Recipe {recipe.name} has the paper's first stage and no second one; nothing gives a diameter. Set "
            "reduction.ship to true."
        )
    members = tuple(
        Member(s.uid, person_of(cache / f"{s.uid}.npz"), s.subset, len(download.included.get(s.uid, ())))
        for s in download.scans
    )
    try:
        folds = divide(members)
    except ValueError as error:
        raise PlanError(str(error)) from error
    said = {"recipe": asdict(recipe), "data_set": data_set, "members": [asdict(m) for m in members]}
    text = json.dumps(said, indent=1, sort_keys=True) + "\n"
    run.mkdir(parents=True, exist_ok=True)
    path = run / PLAN
    if path.exists() and path.read_text(encoding="ascii") != text:
        raise PlanError(f"{run} was begun with another recipe or other scans ({PLAN}); choose a new folder.")
    luna16.write_text(path, text)
    return CrossValidation(recipe, download, cache, run, members, folds, data_set)


def cross_validate(validation: CrossValidation, numbers: Sequence[int], say: Say, *, workers: int = 1) -> Path:
    """Run folds, or what is left of them, then pool those that are finished.

    Parameters
    ----------
    validation
        As planned.
    numbers
        Which folds; all when empty.
    say
        Told of progress: what is done, how many of how many, and a name.
    workers
        Processes that make training batches ahead.

    Returns
    -------
    Path
        The folder of the pooled result.

    Raises
    ------
    PlanError
        When there is no such fold.
    LeakError
        When a model would judge what it saw.
    """
    known = {fold.number: fold for fold in validation.folds}
    if strange := sorted(set(numbers) - set(known)):
        raise PlanError(f"There is no fold {strange[0]}; the subsets are {', '.join(map(str, known))}.")
    for number in numbers or known:
        run_fold(validation, known[number], say, workers=workers)
    return pool(validation)


def run_fold(validation: CrossValidation, fold: Fold, say: Say, *, workers: int = 1) -> None:
    """Train, threshold, calibrate and judge one fold, from the step where it was left."""
    folder = validation.folder(fold)
    if (folder / "run.json").exists():
        say(f"fold {fold.number}", 1, 1, "was finished")
        return
    claim(validation, fold)
    recipe = validation.recipe
    first = _step(folder / "screening.json", lambda: _train_first(validation, fold, workers))
    found = _candidates(validation, fold, folder / first["path"], say)
    chosen = choose_threshold([found[uid] for uid in fold.validation])
    second = None
    if recipe.reduction.ship:
        chosen_first = folder / first["path"]
        done = _step(
            folder / "reduction.json", lambda: _train_second(validation, fold, chosen_first, found, workers)
        )
        second = folder / done["path"]
    floor = chosen.point.threshold if recipe.screening.network == "fcn" else None
    _step(folder / CHOSEN, lambda: _choose(validation, fold, (folder / first["path"], second), floor, say))
    judge_fold(validation, fold, say)


def claim(validation: CrossValidation, fold: Fold) -> None:
    """Write what the fold's models are going to see, before they see it; refuse a folder that saw something else.

    Raises
    ------
    LeakError
        When the fold leaks, or its folder holds models that were trained on other scans.
    """
    check(fold, validation.persons)
    folder = validation.folder(fold)
    folder.mkdir(parents=True, exist_ok=True)
    saw = {"seen": sorted(fold.seen)}
    path = folder / SAW
    if path.exists() and json.loads(path.read_text(encoding="ascii")) != saw:
        raise LeakError(
            f"{folder} holds models that were trained on other scans than fold {fold.number}; delete it."
        )
    if not path.exists() and any(folder.glob("*/*.pt")):
        raise LeakError(f"{folder} holds models, but not what they saw ({SAW}); delete it.")
    luna16.write_text(path, json.dumps(saw, indent=1) + "\n")


def _step(path: Path, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do a step and keep what it says, or read what it said."""
    if not path.exists():
        luna16.write_text(path, json.dumps(work(), indent=1) + "\n")
    done: dict[str, Any] = json.loads(path.read_text(encoding="ascii"))
    return done


def _team(validation: CrossValidation) -> Team:
    """One process on the recipe's device; several GPUs take a fold each."""
    return Team(device=device_of(validation.recipe.device))


def _train_first(validation: CrossValidation, fold: Fold, workers: int) -> dict[str, Any]:
    folder = validation.folder(fold)
    path = train_screening(
        validation.recipe,
        validation.cache,
        fold.train,
        folder / "screening",
        workers=workers,
        team=_team(validation),
    )
    return {"path": str(path.relative_to(folder))}


def _candidates(validation: CrossValidation, fold: Fold, first: Path, say: Say) -> dict[str, Candidates]:
    """Search the fold's training and validation scans, for the threshold and for stage 2."""
    recipe, weights, _ = load_checkpoint(first)
    screener = Screener(recipe.screening, weights, device=recipe.device)
    folder = validation.folder(fold)
    wanted = fold.seen if recipe.reduction.ship else fold.validation
    found = {}
    for done, total, candidates in search_scans(screener, validation.cache, wanted, folder / "candidates"):
        say(f"fold {fold.number}: candidates", done, total, candidates.name)
        found[candidates.name] = candidates
    return found


def _train_second(
    validation: CrossValidation, fold: Fold, first: Path, found: dict[str, Candidates], workers: int
) -> dict[str, Any]:
    recipe, weights, _ = load_checkpoint(first)
    folder = validation.folder(fold)
    path = train_reduction(
        validation.recipe,
        validation.cache,
        fold.train,
        {uid: found[uid].index_zyx for uid in fold.train},
        folder / "reduction",
        shared_from=weights if recipe.screening.network == "fcn" else None,
        workers=workers,
        team=_team(validation),
    )
    return {"path": str(path.relative_to(folder))}


def _choose(
    validation: CrossValidation, fold: Fold, stages: tuple[Path, Path | None], floor: float | None, say: Say
) -> dict[str, Any]:
    """Calibrate and choose operating points on the validation scans, and write the fold's weights."""
    folder = validation.folder(fold)
    data = f"{validation.data_set}, validation scans of fold {fold.number}"
    out = folder / WEIGHTS
    card: dict[str, Any] = {
        "model_version": f"crossval-{fold.number}",
        "reduction": stages[1],
        "floor": floor,
        "training_data": (TrainingData(f"{validation.data_set} but fold {fold.number}", "as that of the data"),),
    }
    export(stages[0], out, PROVISIONAL, **card)
    marks = _search(validation, fold.validation, out, folder / "validation", say)
    scans = [_held_out(validation, uid, rows) for uid, rows in marks.items()]
    said: dict[str, Any] = {}
    calibration = None
    try:
        calibration = fit(scans, "platt", data)
        said["expected_error_on_what_it_was_fitted_on"] = measure(scans, calibration).expected_error
    except CalibrationError as error:
        said["not_calibrated"] = str(error)
    points = choose_points(scans, calibration or NO_CHANGE, data)
    export(stages[0], out, points, calibration=calibration, **card)
    return said | {"weights": hashlib.sha256(out.read_bytes()).hexdigest(), "floor": floor}


def _search(
    validation: CrossValidation, uids: Sequence[str], weights: Path, kept: Path, say: Say
) -> dict[str, tuple[Mark, ...]]:
    detector = judging_detector(weights, validation.recipe.device)
    wanted = set(uids)
    scans = [s for s in validation.download.scans if s.uid in wanted]
    marks = {}
    for done, total, uid, rows in search_download(detector, scans, kept):
        say(f"{kept.parent.name}: {kept.name} scans", done, total, uid)
        marks[uid] = rows
    return marks


def _held_out(validation: CrossValidation, uid: str, marks: Sequence[Mark]) -> HeldOutScan:
    download = validation.download
    return HeldOutScan(
        tuple(download.included.get(uid, ())),
        tuple(download.excluded.get(uid, ())),
        tuple(ScoredMark(m.position_mm, m.raw_score) for m in marks),
    )


def judge_fold(validation: CrossValidation, fold: Fold, say: Say) -> None:
    """Judge the test scans of a fold by its own weights; what these saw is read from the folder, not believed.

    Raises
    ------
    LeakError
        When the weights saw one of the scans, or it is not known what they saw.
    """
    folder = validation.folder(fold)
    if not (folder / SAW).exists():
        raise LeakError(f"{folder}: it is not known what these weights saw ({SAW} is missing); delete the folder.")
    seen = json.loads((folder / SAW).read_text(encoding="ascii"))["seen"]
    refuse_seen(fold.test, seen, validation.persons)
    weights = folder / WEIGHTS
    marks = _search(validation, fold.test, weights, folder / "test", say)
    write_judged_tables(folder, marks, validation.download.included, validation.download.excluded)
    count = _test_candidates(validation, fold, say)
    write_candidate_count(folder, count)
    judge_run(folder)
    write_run_card(folder, _card(validation, fold.number, (hashlib.sha256(weights.read_bytes()).hexdigest(),)))


def _test_candidates(validation: CrossValidation, fold: Fold, say: Say) -> CandidateCount:
    """Count what stage 1 alone finds on the test scans at the validation's threshold."""
    folder = validation.folder(fold)
    first = json.loads((folder / "screening.json").read_text(encoding="ascii"))["path"]
    recipe, weights, _ = load_checkpoint(folder / first)
    screener = Screener(recipe.screening, weights, device=recipe.device)
    kept = folder / "candidates"
    scans = []
    for done, total, found in search_scans(screener, validation.cache, fold.test, kept):
        say(f"fold {fold.number}: candidates of the test scans", done, total, found.name)
        scans.append(found)
    validated = [c for _, _, c in search_scans(screener, validation.cache, fold.validation, kept)]
    threshold = choose_threshold(validated).point.threshold
    point = recall_at(scans, threshold)
    nodules = sum(len(s.nodules) for s in scans)
    return CandidateCount(
        scans=len(scans),
        nodules=nodules,
        found=round(point.recall * nodules),
        candidates=round(point.candidates_per_scan * len(scans)),
        threshold=threshold,
    )


def pool(validation: CrossValidation) -> Path:
    """Put the finished folds together: every scan once, judged by the model of its own fold.

    Raises
    ------
    PlanError
        When no fold is finished.
    LeakError
        When a scan is in two folds' results.
    """
    out = validation.run / POOLED
    marks: dict[str, tuple[Mark, ...]] = {}
    hashes: list[str] = []
    counts: list[CandidateCount] = []
    finished = [f for f in validation.folds if (validation.folder(f) / "run.json").exists()]
    if not finished:
        raise PlanError(f"{validation.run}: no fold is finished; there is nothing to pool.")
    for fold in finished:
        folder = validation.folder(fold)
        hashes += read_run_card(folder).weights_sha256
        count = read_candidate_count(folder)
        counts += [count] if count else []
        judged = kept_marks(folder / "test", fold.test)
        if twice := sorted(marks.keys() & judged.keys()):
            raise LeakError(f"{twice[0]} was judged in two folds.")
        marks |= judged
    write_judged_tables(out, marks, validation.download.included, validation.download.excluded)
    write_candidate_count(
        out,
        CandidateCount(
            scans=sum(c.scans for c in counts),
            nodules=sum(c.nodules for c in counts),
            found=sum(c.found for c in counts),
            candidates=sum(c.candidates for c in counts),
            threshold=sum(c.threshold for c in counts) / max(len(counts), 1),
        ),
    )
    judge_run(out)
    write_run_card(out, _card(validation, None, tuple(hashes)))
    return out


def _card(validation: CrossValidation, fold: int | None, weights: tuple[str, ...]) -> RunCard:
    recipe = validation.recipe
    first = recipe.screening.network
    return RunCard(
        kind="crossval",
        recipe=recipe.name,
        screening="fcn+osf" if first == "fcn" and recipe.screening.filtering else first,
        reduction=recipe.reduction.network if recipe.reduction.ship else "none",
        seed=recipe.seed,
        fold=fold,
        folds=len(validation.folds),
        data_set=validation.data_set,
        simulated=validation.download.simulated,
        weights_sha256=weights,
        scans=str(validation.download.root.resolve()),
    )

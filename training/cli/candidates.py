"""``nodule-train candidates``: what stage 1 proposes, and at which threshold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from training.cli.say import Progress, fail
from training.cli.train import names_in

if TYPE_CHECKING:
    from training.candidates import RecallPoint
    from training.preparing import CacheCard
    from training.recipes import Recipe
    from training.run_folder import RunCard


def candidates(
    checkpoint: Annotated[Path, typer.Argument(help="screening.pt of a run.", exists=True)],
    *,
    scans: Annotated[Path, typer.Option(help="Folder of prepared scans, from 'prepare'.", exists=True)],
    out: Annotated[Path, typer.Option(help="Folder to write; an unfinished search is gone on with.")],
    subset: Annotated[list[int] | None, typer.Option(help="Search this subset alone; may be repeated.")] = None,
    validation: Annotated[
        int, typer.Option(help="Subset to choose the threshold on; -1: all that is searched.", min=-1)
    ] = -1,
    keep: Annotated[float, typer.Option(help="Part of the nodules that the threshold keeps.", min=0, max=1)] = 0.98,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
) -> None:
    """Search scans with stage 1 alone: candidates, recall against candidates a scan, and the threshold to use.

    The threshold is the highest one that keeps 98 % of the nodules of the validation subset; what the paper's 0.85
    does stands beside it. Give the subsets that this stage was not trained on.

    The folder gets candidates.csv, recall.csv (the whole curve), recall.json, recall.png and candidates.json.

    nodule-train candidates runs/one/screening.pt --scans cache --subset 9 --validation 8 --out runs/found
    """
    from training import candidates as search
    from training.export import load_checkpoint
    from training.preparing import read_cache_card
    from training.run_folder import write_candidate_count, write_run_card
    from training.scans import UnusableScanError, subset_of

    names = names_in(scans, [])
    subsets = {name: subset_of(scans / f"{name}.npz") for name in names}
    wanted = [name for name in names if not subset or subsets[name] in {*subset, validation}]
    if not wanted:
        fail(f"{scans} has no prepared scan of subset {', '.join(map(str, subset or []))}.")
    recipe, weights, _ = load_checkpoint(checkpoint)
    progress = Progress("candidates")
    found = []
    try:
        screener = search.Screener(recipe.screening, weights, device=device)
        for done, total, one in search.search_scans(screener, scans, wanted, out / f"kept-{_hash(checkpoint)}"):
            progress.show(done, total, one.name)
            found.append(one)
    except UnusableScanError as error:
        fail(str(error))
    chosen_on = [one for one in found if validation < 0 or subsets[one.name] == validation]
    judged = [one for one in found if not subset or subsets[one.name] in subset]
    summary = search.write_search(out, judged, chosen_on, keep)
    write_candidate_count(out, summary.count)
    write_run_card(out, _card(recipe, read_cache_card(scans), subset or []))
    for point in summary.table:
        typer.echo(_line("", point))
    if not summary.kept_enough:
        typer.echo(f"warning: no threshold keeps {keep:.0%} of the nodules; the floor is taken.", err=True)
    typer.echo(_line(f"threshold keeping {keep:.0%}: ", summary.ours))
    typer.echo(_line("the paper's threshold: ", summary.papers))


def _line(before: str, point: RecallPoint) -> str:
    rate = f"{point.candidates_per_scan:7.1f} candidates a scan"
    return f"{before}{rate}: recall {point.recall:.3f} at {point.threshold:.4f}"


def _card(recipe: Recipe, cache: CacheCard, subsets: list[int]) -> RunCard:
    from training.run_folder import RunCard

    first = recipe.screening.network
    return RunCard(
        kind="candidates",
        recipe=recipe.name,
        screening="fcn+osf" if first == "fcn" and recipe.screening.filtering else first,
        reduction="none",
        seed=recipe.seed,
        fold=subsets[0] if len(subsets) == 1 else None,
        folds=cache.subsets,
        data_set=cache.data_set,
        simulated=cache.simulated,
        weights_sha256=(),
    )


def _hash(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]

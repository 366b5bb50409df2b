"""The report's shell: run folders read, curves and key images drawn, one HTML file that needs no other."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.domain.outcome import Refusal
from pipeline.reading import METAIMAGE_ENDINGS, read_headers, read_metaimage
from training.examples import choose_examples
from training.froc import RATES, judge, pool
from training.judge_tables import TableError, read_annotations, read_findings, read_series, read_submission
from training.key_images import key_image
from training.plots import RATE_NAMES, Line, froc_figure, svg_of
from training.report import (
    LUNA16,
    NOT_COMPARABLE,
    FinishedRun,
    curve_rows,
    data_of,
    fold_sentences,
    judged_of,
    missing,
    order_sentences,
    reduction_rows,
    screening_rows,
    why_not_comparable,
    without_pooled_folds,
)
from training.run_folder import (
    ANNOTATIONS,
    EXCLUDED,
    FROC,
    RUN_CARD,
    SERIESUIDS,
    SUBMISSION,
    RunFolderError,
    read_candidate_count,
    read_run_card,
)
from training.scans import read_volume

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from training.examples import Example
    from training.froc import Annotation
    from training.key_images import KeyImage
    from training.report import Judged

HERE = Path(__file__).parent
MOST_BANDS = 3


@dataclass(frozen=True, slots=True)
class Card:
    """An example as the page shows it."""

    title: str
    details: str
    scan: str
    image: KeyImage
    kind: str


@dataclass(frozen=True, slots=True)
class Gallery:
    """The examples of a run; ``remarks`` say which could not be drawn."""

    run: str
    data: str
    cards: tuple[Card, ...]
    remarks: tuple[str, ...]


def find_runs(paths: Sequence[Path]) -> dict[str, Path]:
    """Find the finished runs in or below some folders; the name of each is its way from the folder given."""
    found: dict[str, Path] = {}
    for path in paths:
        for card in sorted(path.rglob(RUN_CARD)):
            folder = card.parent
            inner = folder.relative_to(path).as_posix()
            name = path.resolve().name if inner == "." else inner
            if name in found and found[name].resolve() != folder.resolve():
                name = f"{path.resolve().name}/{name}"
            found.setdefault(name, folder)
    return found


def load_run(name: str, folder: Path) -> FinishedRun:
    """Read a run folder, to be called by a name.

    Raises
    ------
    RunFolderError
        When one of its files is damaged.
    """
    card = read_run_card(folder)
    judged = _judged(folder / FROC)
    series: tuple[str, ...] = ()
    pooled = None
    if judged and all((folder / name).is_file() for name in (SUBMISSION, ANNOTATIONS, SERIESUIDS)):
        try:
            series = tuple(read_series(folder / SERIESUIDS))
            marks = read_submission(folder / SUBMISSION)
            included, excluded = _truth(folder)
        except TableError as error:
            raise RunFolderError(str(error)) from error
        pooled = pool(judge(series, included, excluded, marks).values())
    return FinishedRun(name, card, judged, read_candidate_count(folder), series, pooled)


def _judged(path: Path) -> Judged | None:
    if not path.is_file():
        return None
    try:
        return judged_of(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path} is not a judgement ({error!r}); run nodule-train froc again.") from error


def _truth(folder: Path) -> tuple[dict[str, list[Annotation]], dict[str, list[Annotation]]]:
    excluded = folder / EXCLUDED
    return read_annotations(folder / ANNOTATIONS), read_annotations(excluded) if excluded.is_file() else {}


def render(folders: Mapping[str, Path], examples: int = 6) -> str:
    """Make the page from run folders.

    Parameters
    ----------
    folders
        As :func:`find_runs` gives them.
    examples
        Found nodules to show of each data set; 0 draws no key images.

    Returns
    -------
    str
        HTML that needs no other file; folders that cannot be read are named in it.
    """
    runs: list[FinishedRun] = []
    broken: list[str] = []
    for name, folder in folders.items():
        try:
            runs.append(load_run(name, folder))
        except RunFolderError as error:
            broken.append(str(error))
    shown = without_pooled_folds(runs)
    one_each = {data_of(run.card): run for run in reversed(shown) if run.judged}
    published = tomllib.loads((HERE / "published.toml").read_text(encoding="utf-8"))
    galleries = [_gallery(run, folders[run.name], examples) for run in one_each.values()] if examples else []
    rows, reductions = curve_rows(shown), reduction_rows(shown)
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        published=published,
        not_comparable=NOT_COMPARABLE,
        rate_names=RATE_NAMES,
        ours=[row for row in rows if not row.why_not],
        others=[row for row in rows if row.why_not],
        screening=screening_rows(shown),
        reductions=reductions,
        order=order_sentences(reductions),
        spread=fold_sentences(runs),
        figures=_figures(shown, published),
        galleries=[gallery for gallery in galleries if gallery.cards],
        missing=[*broken, *missing(shown), *(remark for g in galleries for remark in g.remarks)],
        runs=runs,
    )


def _figures(runs: Sequence[FinishedRun], published: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    """Draw one figure for LUNA16's ten folds, with the paper's row, and one for each other data set.

    Bands that lie over each other hide each other: only a figure of few curves has them.
    """
    groups: dict[str, list[Line]] = {}
    for run in runs:
        if run.judged is None:
            continue
        data = data_of(run.card)
        name = f"{LUNA16}, ten folds" if not why_not_comparable(run) else f"{data}, not comparable with Table 1"
        groups.setdefault(name, []).append(_line(run, run.judged))
    for name, lines in groups.items():
        if len(lines) > MOST_BANDS:
            groups[name] = [replace(line, low=(), high=()) for line in lines]
    for name, lines in groups.items():
        if name == f"{LUNA16}, ten folds":
            lines.extend(_published_line(row) for row in published["table_1"]["rows"] if row.get("paper"))
    # The XML declaration has no place inside a page.
    return [(name, Markup(_inline(svg_of(froc_figure(lines, name))))) for name, lines in groups.items()]


def _inline(svg: str) -> str:
    return svg[svg.index("<svg") :]


def _line(run: FinishedRun, judged: Judged) -> Line:
    curve = judged.curve
    return Line(
        name=f"{run.name}: CPM {judged.cpm:.3f} ({judged.cpm_interval.low:.3f} to {judged.cpm_interval.high:.3f})",
        false_per_scan=curve["false_per_scan"],
        sensitivity=curve["sensitivity"],
        low=curve["low"],
        high=curve["high"],
        sensitivity_at_rates=judged.sensitivity,
    )


def _published_line(row: Mapping[str, Any]) -> Line:
    values = tuple(row["sensitivity"])
    return Line(f"{row['name']}: CPM {row['cpm']:.3f}, published", RATES, values, (), (), values, published=True)


def _gallery(run: FinishedRun, folder: Path, hits: int) -> Gallery:
    """Draw the examples of a run whose scans are at hand."""
    data = data_of(run.card)
    if not run.card.scans:
        return Gallery(run.name, data, (), (f"{run.name}: its run.json names no scans; no key images.",))
    where = folder / run.card.scans
    try:
        series, (included, excluded) = read_series(folder / SERIESUIDS), _truth(folder)
        marks = read_findings(folder / SUBMISSION)
    except TableError as error:
        return Gallery(run.name, data, (), (f"{run.name}: no key images: {error}",))
    chosen = choose_examples(series, included, excluded, marks, hits)
    scans = _scans_in(where, {example.series for example in chosen})
    cards: list[Card] = []
    wanted = list(dict.fromkeys(example.series for example in chosen))
    absent = [uid for uid in wanted if uid not in scans]
    remarks = [_not_at_hand(run.name, absent)] if absent else []
    for uid in (uid for uid in wanted if uid in scans):
        drawn = _cards(scans[uid], [example for example in chosen if example.series == uid])
        if isinstance(drawn, str):
            remarks.append(f"{run.name}: no key image of {_short(uid)}: {drawn}")
        else:
            cards += drawn
    rank = {"nodule": 0, "false mark": 1, "missed": 2}
    cards.sort(key=lambda drawn: rank[drawn.kind])
    return Gallery(run.name, data, tuple(cards), tuple(remarks))


def _not_at_hand(run: str, absent: Sequence[str]) -> str:
    if len(absent) == 1:
        return f"{run}: scan {_short(absent[0])} of its examples is not at hand; no key image of it."
    example = _short(absent[0])
    return (
        f"{run}: {len(absent)} scans of its examples are not at hand, for example {example}; no key images of them."
    )


def _cards(path: Path, examples: Sequence[Example]) -> list[Card] | str:
    volume = read_metaimage(path) if path.is_file() else read_volume(path)
    if isinstance(volume, Refusal):
        return volume.text
    cards = []
    for example in examples:
        kind, title = _said(example)
        diameter = example.found_diameter_mm if kind != "missed" else example.true_diameter_mm
        image = key_image(volume.hu, volume.grid, example.position_mm, diameter)
        truth = "" if example.true_diameter_mm is None else f"true diameter {example.true_diameter_mm:.1f} mm"
        cards.append(Card(title, truth, _short(example.series), image, kind))
    return cards


def _said(example: Example) -> tuple[str, str]:
    if example.probability is None:
        return "missed", "missed"
    size = "" if example.found_diameter_mm is None else f", {example.found_diameter_mm:.1f} mm"
    kind = "false mark" if example.true_diameter_mm is None else "nodule"
    return kind, f"p {example.probability:.2f}{size}"


def _short(uid: str) -> str:
    return uid if len(uid) <= 12 else f"...{uid[-8:]}"


def _scans_in(folder: Path, wanted: set[str]) -> dict[str, Path]:
    """Find MetaImages by their name, and folders of DICOM by the series of their first file."""
    if not folder.is_dir():
        return {}
    found = {p.stem: p for p in sorted(folder.rglob("*")) if p.suffix in METAIMAGE_ENDINGS and p.stem in wanted}
    if wanted <= set(found):
        return found
    for inner in sorted(p for p in folder.rglob("*") if p.is_dir()):
        first = next((p for p in sorted(inner.iterdir()) if p.is_file()), None)
        for _, uid in read_headers([first] if first else []).series:
            if uid in wanted:
                found.setdefault(uid, inner)
    return found

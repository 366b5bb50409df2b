"""Which series of a study to analyse: headers and geometry gathered into facts, facts into verdicts."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pipeline.assemble import plan
from pipeline.domain.outcome import Code, Notice, Refusal
from pipeline.pixels import Pixels, is_lossy, pixel_fault, read_pixels
from pipeline.reading import read_headers
from pipeline.selection import SeriesFacts, SeriesVerdict, StackFacts, judge, kernel_class, rank, score_text
from pipeline.slices import quiet_parser

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from pipeline.assemble import Stack
    from pipeline.domain.limits import SelectionLimits
    from pipeline.reading import Inventory
    from pipeline.slices import Instance, Slice, Unreadable

Text = TypeVar("Text", str, tuple[str, ...])

NOTHING_FOUND = Refusal(Code.NOT_CT, "No DICOM image was found.")


@dataclass(frozen=True, slots=True)
class Decision:
    """Which series of a study to analyse.

    Attributes
    ----------
    series
        A verdict on each series, the best first; refused ones after the eligible ones.
    unreadable
        Why files that belong to no known series could not be read.
    """

    series: tuple[SeriesVerdict, ...]
    unreadable: tuple[Refusal, ...] = ()

    @property
    def eligible(self) -> tuple[SeriesVerdict, ...]:
        """The series that may be analysed, the best first."""
        return tuple(v for v in self.series if v.eligible)

    @property
    def best_ct(self) -> SeriesVerdict | None:
        """The best-ranked series that holds CT images: the evidence of a *not analysed* report."""
        return next((v for v in self.series if v.is_ct), None)

    @property
    def refusal(self) -> Refusal | None:
        """Why nothing of the study is analysed: the reason of the series that came nearest; ``None`` if one is."""
        if self.eligible:
            return None
        reasons = [v.refusal for v in self.series if v.refusal is not None]
        return next(iter((*reasons, *self.unreadable)), NOTHING_FOUND)

    def to_json(self) -> str:
        """Give the JSON text that :meth:`from_json` reads; it holds no description and no patient data."""
        return json.dumps(
            {"series": [asdict(v) for v in self.series], "unreadable": [asdict(r) for r in self.unreadable]}
        )

    @staticmethod
    def from_json(text: str) -> Decision:
        """Read back what :meth:`to_json` wrote.

        Raises
        ------
        KeyError, ValueError
            When the text was not written by this version.
        """
        document = json.loads(text)
        return Decision(
            tuple(_verdict(v) for v in document["series"]), tuple(_refusal(r) for r in document["unreadable"])
        )


def _refusal(document: Mapping[str, Any]) -> Refusal:
    return Refusal(Code(document["code"]), document["text"], document["retryable"])


def _verdict(document: Mapping[str, Any]) -> SeriesVerdict:
    refusal = document["refusal"]
    return SeriesVerdict(
        **{
            **document,
            "refusal": None if refusal is None else _refusal(refusal),
            "notices": tuple(Notice(Code(n["code"]), n["text"]) for n in document["notices"]),
            "reasons": tuple(document["reasons"]),
        }
    )


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict, and the volume it speaks of where there is one."""

    verdict: SeriesVerdict
    stack: Stack | None


def decide(paths: Sequence[Path], limits: SelectionLimits) -> Decision:
    """Judge every series among the files of a study; pixels are read only where images share a position.

    Parameters
    ----------
    paths
        Files of one study or several, in any order.
    limits
        The values of ``[selection]``.
    """
    judged, unreadable = judge_all(read_headers(paths), limits)
    return Decision(tuple(j.verdict for j in judged), unreadable)


def judge_all(inventory: Inventory, limits: SelectionLimits) -> tuple[tuple[Judged, ...], tuple[Refusal, ...]]:
    """Judge each series of an inventory, the best first; beside it why files that belong to none are unreadable."""
    mixed = _studies_of_mixed_patients(inventory)
    damaged: dict[tuple[str, str], list[Unreadable]] = defaultdict(list)
    for file in inventory.unreadable:
        damaged[file.study_uid, file.series_uid].append(file)
    keys = (*inventory.series, *(k for k in damaged if k[1] and k not in inventory.series))
    with quiet_parser():
        judged = [
            _judge_series(key, inventory.series.get(key, ()), damaged.get(key, ()), key[0] in mixed, limits)
            for key in keys
        ]
    homeless = tuple(u.refusal for u in inventory.unreadable if not u.series_uid)
    told = [replace(j, verdict=_missing(j.verdict, len(homeless))) for j in judged]
    return tuple(sorted(told, key=lambda j: rank(j.verdict))), homeless


def _missing(verdict: SeriesVerdict, unreadable: int) -> SeriesVerdict:
    """Warn of files that may belong to the series: not even that could be read."""
    if not (unreadable and verdict.is_ct):
        return verdict
    text = f"{unreadable} files could not be read at all; they may be images of this series. Send them again."
    return replace(verdict, notices=(*verdict.notices, Notice(Code.EXTRA_IMAGES_DROPPED, text)))


def _studies_of_mixed_patients(inventory: Inventory) -> frozenset[str]:
    patients: dict[str, set[str]] = defaultdict(set)
    for (study_uid, _), instances in inventory.series.items():
        patients[study_uid].update(i.patient_id for i in instances if i.patient_id)
    return frozenset(study for study, ids in patients.items() if len(ids) > 1)


def _judge_series(
    key: tuple[str, str],
    instances: Sequence[Instance],
    damaged: Sequence[Unreadable],
    mixed_patient: bool,
    limits: SelectionLimits,
) -> Judged:
    """Judge every volume that one series can form, and keep the best."""
    against = [u.refusal for u in damaged]
    if mixed_patient:
        text = "Images of this study carry different patient identities; correct the study and send it again."
        against.append(Refusal(Code.MIXED_PATIENT, text))
    slices = [piece for instance in instances for piece in instance.slices]
    if not slices:
        facts = SeriesFacts(
            *key, _series_number(instances), 0, refusals=tuple(against[:1]) if not instances else ()
        )
        return Judged(judge(facts, limits), None)
    judged = [
        Judged(
            judge(_facts(key, instances, part, against, limits), limits),
            None if isinstance(part, Refusal) else part,
        )
        for part in plan(slices, limits, _same_pixels)
    ]
    return min(judged, key=lambda j: rank(j.verdict))


def _series_number(instances: Sequence[Instance]) -> int | None:
    return min((i.series_number for i in instances if i.series_number is not None), default=None)


def _facts(
    key: tuple[str, str],
    instances: Sequence[Instance],
    part: Stack | Refusal,
    against: Sequence[Refusal],
    limits: SelectionLimits,
) -> SeriesFacts:
    """Gather what selection looks at, from the images of one stack, or of the whole series where there is none."""
    pieces = [s for i in instances for s in i.slices] if isinstance(part, Refusal) else part.slices
    fault = next((f for piece in pieces if (f := pixel_fault(piece))), None)
    ages = [i.age_years for i in instances if i.age_years is not None]
    return SeriesFacts(
        *key,
        series_number=_series_number(instances),
        ct_images=sum(len(i.slices) for i in instances),
        stack=None if isinstance(part, Refusal) else stack_facts(part),
        unassembled=part if isinstance(part, Refusal) else None,
        refusals=(*against, fault) if fault else tuple(against),
        notices=() if isinstance(part, Refusal) else part.notices,
        image_type=_usual([p.image_type for p in pieces]),
        kernel_class=kernel_class(_usual([p.kernel for p in pieces]), instances[0].manufacturer),
        contrast=any(i.contrast for i in instances),
        lossy=any(is_lossy(p) for p in pieces),
        text_score=score_text(_usual([i.text for i in instances])),
        age_years=min(ages, default=None),
        skipped=any(i.patient_id in limits.skip_patient_ids for i in instances),
    )


def _usual(values: Sequence[Text]) -> Text:
    """The value met most often, the smallest of equals: the order of the files must not matter."""
    return min(Counter(values).items(), key=lambda item: (-item[1], item[0]))[0]


def stack_facts(stack: Stack) -> StackFacts:
    """Give the numbers of a planned volume that selection looks at."""
    form = stack.slices[0].pixels
    return StackFacts(
        slices=len(stack.slices),
        missing=len(stack.missing),
        spacing_mm=stack.spacing_mm,
        thickness_mm=stack.thickness_mm,
        pixel_mm=max(stack.grid.spacing_zyx_mm[1:]),
        rows=form.rows,
        columns=form.columns,
        axial_angle_deg=stack.axial_angle_deg,
        tilt_deg=stack.tilt_deg,
    )


def _same_pixels(a: Slice, b: Slice) -> bool:
    """Whether two images hold the same Hounsfield units; unreadable ones never do."""
    first, second = next(iter(read_pixels([a]))), next(iter(read_pixels([b])))
    if not (isinstance(first, Pixels) and isinstance(second, Pixels)):
        return False
    return np.array_equal(first.hu, second.hu)

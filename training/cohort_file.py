"""The cohort file: which simulated scans there are, with what in them, read from TOML and frozen by its SHA-256.

Pure: a file in, a plan of scans out, every draw from the scan's own seed. Making the scans is `simulate.py`.
"""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from training.lesions import Kind
from training.phantom import Place, ScanSettings
from training.phantom_files import uid_of
from training.plain_chest import PlainSettings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SUMS = "SHA256SUMS"
"""Beside the cohort files that are frozen: `<sha256>  <name>.toml` a line, as ``sha256sum --check`` takes it."""

FORBID = ConfigDict(extra="forbid")


class CohortError(Exception):
    """A cohort that cannot be used; the text says which file, what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Between:
    """A number drawn evenly between two."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Order:
    """Nodules that are inserted into every scan of a part.

    Attributes
    ----------
    kind
        What they are made of.
    diameter_mm
        Least and largest diameter; every ratio in between is equally likely.
    places
        Where they may lie; one is drawn for each nodule. The fissures of a real scan are not known.
    count
        How many in each scan.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FORBID

    kind: Kind
    diameter_mm: tuple[float, float]
    places: tuple[Literal["free", "pleura", "vessel"], ...] = ("free",)
    count: int = 1


@dataclass(frozen=True, slots=True)
class Part:
    """Scans of one sort.

    Attributes
    ----------
    name
        Of the part; the table of scans repeats it.
    base
        ``phantom`` (the digital chest), ``real`` (given scans), or ``plain`` (a small one made in a moment).
    first_seed
        Of the first scan; the others follow.
    scans
        How many; for ``real`` from each source.
    own_nodules
        Nodules that the phantom is made with; they are imaged with it.
    sources
        Names of the real scans.
    blur_mm
        In-plane standard deviation of the real scans' point spread function, for what is inserted.
    nodules
        What is inserted besides.
    imitators, shams
        Inserted things that are none, and blends of contrast 0, in each scan.
    scanner
        What the scanner's settings are drawn from, a list or a range for each; the others follow from the seed.
    """

    __pydantic_config__: ClassVar[ConfigDict] = FORBID

    name: str
    base: Literal["phantom", "plain", "real"]
    first_seed: int
    scans: int
    own_nodules: int = 0
    sources: tuple[str, ...] = ()
    blur_mm: float = 0.6
    nodules: tuple[Order, ...] = ()
    imitators: int = 0
    shams: int = 0
    scanner: dict[str, tuple[int | float, ...] | tuple[str, ...] | Between] | None = None


@dataclass(frozen=True, slots=True)
class CohortFile:
    """A whole cohort file; ``sha256`` is of its bytes."""

    __pydantic_config__: ClassVar[ConfigDict] = FORBID

    name: str
    parts: tuple[Part, ...]
    subsets: int = 10
    sha256: str = ""


COHORT = TypeAdapter(CohortFile)


@dataclass(frozen=True, slots=True)
class WantedNodule:
    """One nodule to insert."""

    kind: Kind
    diameter_mm: float
    place: Place


@dataclass(frozen=True, slots=True)
class PlannedScan:
    """One scan of a cohort before it is made.

    Attributes
    ----------
    uid
        Series Instance UID; follows from the cohort file's hash and the scan's name.
    name, part
        Of the scan, and of its part.
    base, source
        What it is made of; ``source`` is the real scan's name, empty otherwise.
    subset
        Fold; all scans of one source share it.
    seed
        Everything that is drawn follows from it.
    scanner
        Settings that the cohort file decides.
    wanted
        Nodules to insert.
    """

    uid: str
    name: str
    part: str
    base: Literal["phantom", "plain", "real"]
    source: str
    subset: int
    seed: int
    own_nodules: int
    blur_mm: float
    imitators: int
    shams: int
    scanner: dict[str, int | float | str]
    wanted: tuple[WantedNodule, ...]


def read_cohort(path: Path) -> CohortFile:
    """Read a cohort file.

    Raises
    ------
    CohortError
        When it cannot be read, says something unknown, or was changed after it was frozen.
    """
    try:
        content = path.read_bytes()
        table = tomllib.loads(content.decode())
    except (OSError, ValueError) as error:
        raise CohortError(f"{path} cannot be read as TOML: {error}.") from error
    sha256 = hashlib.sha256(content).hexdigest()
    _still_frozen(path, sha256)
    try:
        cohort = COHORT.validate_python({**table, "sha256": sha256})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CohortError(f"{path}: {where}: {first['msg']}.") from error
    for part in cohort.parts:
        _check(path, part)
    if not 2 <= cohort.subsets <= 10:
        raise CohortError(f"{path}: subsets is {cohort.subsets}; LUNA16's layout has 2 to 10.")
    return cohort


def _still_frozen(path: Path, sha256: str) -> None:
    sums = path.parent / SUMS
    if not sums.is_file():
        return
    for line in sums.read_text(encoding="ascii").splitlines():
        known, _, name = line.partition("  ")
        if name == path.name and known != sha256:
            raise CohortError(
                f"{path} was changed after it was frozen (SHA-256 {sha256}, {SUMS} says {known}): results on it "
                "would not be comparable. Copy it under another name and change the copy."
            )


def _check(path: Path, part: Part) -> None:
    allowed = {f.name for f in fields(PlainSettings if part.base == "plain" else ScanSettings)}
    unknown = sorted(set(part.scanner or {}) - allowed)
    if unknown:
        known = ", ".join(sorted(allowed))
        raise CohortError(f"{path}: part {part.name}: scanner has no {', '.join(unknown)}; known are {known}.")
    if (part.base == "real") != bool(part.sources):
        raise CohortError(f"{path}: part {part.name}: sources belong to base 'real', and to no other.")
    if part.base == "real" and (part.scanner or part.own_nodules):
        raise CohortError(
            f"{path}: part {part.name}: a real scan keeps its scanner and has no own_nodules to ask for."
        )
    if part.base != "phantom" and part.own_nodules:
        raise CohortError(f"{path}: part {part.name}: own_nodules belong to base 'phantom'.")
    for order in part.nodules:
        low, high = order.diameter_mm
        if not 3.0 <= low <= high <= LARGEST_MM or not order.places or order.count < 1:
            raise CohortError(
                f"{path}: part {part.name}: a nodule needs 3 <= least <= largest diameter <= {LARGEST_MM:g} mm, "
                "a place and a count."
            )


LARGEST_MM = 20.0
"""An inserted nodule's largest diameter: its noise is cut from a field of limited size."""


def plan(cohort: CohortFile) -> tuple[PlannedScan, ...]:
    """Plan every scan of a cohort, in the file's order; the same file gives the same plan."""
    scans = [scan for part in cohort.parts for scan in _plan_part(cohort, part)]
    subsets = _subsets(scans, cohort.subsets)
    return tuple(
        PlannedScan(**{f.name: getattr(scan, f.name) for f in fields(scan)} | {"subset": subset})
        for scan, subset in zip(scans, subsets, strict=True)
    )


def _plan_part(cohort: CohortFile, part: Part) -> list[PlannedScan]:
    planned = []
    for k in range(part.scans * max(len(part.sources), 1)):
        seed = part.first_seed + k
        source = part.sources[k // part.scans] if part.sources else ""
        name = f"{source}-{seed}" if source else f"{part.name}-{seed}"
        rng = np.random.default_rng([seed, 11])
        planned.append(
            PlannedScan(
                uid=uid_of("cohort", cohort.sha256, part.name, name),
                name=name,
                part=part.name,
                base=part.base,
                source=source,
                subset=0,
                seed=seed,
                own_nodules=part.own_nodules,
                blur_mm=part.blur_mm,
                imitators=part.imitators,
                shams=part.shams,
                scanner={key: _drawn(rng, choices) for key, choices in (part.scanner or {}).items()},
                wanted=tuple(_wanted(rng, part.nodules)),
            )
        )
    return planned


def _drawn(rng: np.random.Generator, choices: Sequence[int | float | str] | Between) -> int | float | str:
    if isinstance(choices, Between):
        return float(rng.uniform(choices.low, choices.high))
    return choices[int(rng.integers(len(choices)))]


def _wanted(rng: np.random.Generator, orders: Sequence[Order]) -> list[WantedNodule]:
    """Draw the nodules, the largest first: it is the hardest to find room for."""
    wanted = []
    for order in orders:
        for _ in range(order.count):
            low, high = np.log(order.diameter_mm)
            place = order.places[int(rng.integers(len(order.places)))]
            wanted.append(WantedNodule(order.kind, float(np.exp(rng.uniform(low, high))), place))
    return sorted(wanted, key=lambda w: -w.diameter_mm)


def _subsets(scans: Sequence[PlannedScan], count: int) -> list[int]:
    """Divide scans into subsets of like mixture: one source stays together, each part is spread evenly."""
    chosen: dict[str, int] = {}
    of_part: dict[tuple[str, int], int] = {}
    total = [0] * count
    answer = []
    for scan in scans:
        person = scan.source or scan.name
        if person not in chosen:
            chosen[person] = min(range(count), key=lambda s: (of_part.get((scan.part, s), 0), total[s], s))
        subset = chosen[person]
        of_part[scan.part, subset] = of_part.get((scan.part, subset), 0) + 1
        total[subset] += 1
        answer.append(subset)
    return answer

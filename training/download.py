"""Reads a LUNA16 download and says what is missing or broken in it, by name and with what to do.

Only headers and sizes are looked at here, so that 888 scans are checked in seconds; voxels are read when a scan is
prepared.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

from training import luna16
from training.judge_tables import TableError, read_annotations, read_series
from training.simulate import MANIFEST, SCANS, open_cohort

if TYPE_CHECKING:
    from pathlib import Path

    from training.froc import Annotation

SUBSETS = 10
BYTES = {
    "MET_CHAR": 1,
    "MET_UCHAR": 1,
    "MET_SHORT": 2,
    "MET_USHORT": 2,
    "MET_INT": 4,
    "MET_UINT": 4,
    "MET_FLOAT": 4,
    "MET_DOUBLE": 8,
}
NEEDED = ("DimSize", "ElementSpacing", "Offset", "ElementType", "ElementDataFile")
AGAIN = "unpack its subset again, or download it again"


@dataclass(frozen=True, slots=True)
class DownloadedScan:
    """One scan of a download: its UID, subset, header file, whose scan it is, and its part of a cohort."""

    uid: str
    subset: int
    path: Path
    person: str
    part: str = ""


@dataclass(frozen=True, slots=True)
class Download:
    """A folder in LUNA16's layout.

    Attributes
    ----------
    scans
        By subset and UID, the broken ones left out.
    included, excluded
        Findings of each series.
    problems
        A sentence for each thing that is missing or broken.
    simulated
        Whether it is a cohort made by ``simulate``.
    """

    root: Path
    scans: tuple[DownloadedScan, ...]
    included: dict[str, list[Annotation]]
    excluded: dict[str, list[Annotation]]
    problems: tuple[str, ...]
    simulated: bool

    @property
    def subsets(self) -> tuple[int, ...]:
        """The subsets that hold scans."""
        return tuple(sorted({scan.subset for scan in self.scans}))


def read_download(root: Path) -> Download:
    """Look through a folder in LUNA16's layout.

    Raises
    ------
    CohortError
        When it is a cohort whose file was changed.
    """
    problems: list[str] = []
    simulated = (root / MANIFEST).is_file()
    if simulated:
        open_cohort(root)
    cohort = _cohort_rows(root) if simulated else {}
    scans: dict[str, DownloadedScan] = {}
    for subset in range(SUBSETS):
        for path in sorted(luna16.subset_folder(root, subset).glob("*.mhd")):
            uid = path.stem
            if uid in scans:
                problems.append(
                    f"{uid} lies in subset{scans[uid].subset} and in subset{subset}: it would be trained on and "
                    "judged; delete one of the two."
                )
                continue
            fault = image_fault(path)
            if fault:
                problems.append(fault)
                continue
            person, part = cohort.get(uid, (uid, ""))
            scans[uid] = DownloadedScan(uid, subset, path, person, part)
    problems += _missing_subsets(root, simulated=simulated)
    included, excluded, faults = _tables(root)
    problems += faults + _unlisted(root, scans, included, excluded)
    return Download(root, tuple(scans.values()), included, excluded, tuple(problems), simulated)


def image_fault(path: Path) -> str:
    """Say what is wrong with a ``.mhd`` and its data file; empty where nothing is."""
    try:
        header = dict(_pair(line) for line in path.read_text(encoding="ascii").splitlines() if "=" in line)
    except (OSError, UnicodeDecodeError) as error:
        return f"{path}: the header cannot be read ({error}); {AGAIN}."
    lacking = [key for key in NEEDED if key not in header]
    if lacking:
        return f"{path}: the header lacks {', '.join(lacking)}; {AGAIN}."
    raw = path.parent / header["ElementDataFile"]
    if not raw.is_file():
        return f"{path}: its data file {raw.name} is missing; {AGAIN}."
    if header.get("CompressedData", "False").lower() == "true":
        return f"{path}: its data file {raw.name} is empty; {AGAIN}." if not raw.stat().st_size else ""
    try:
        size = BYTES[header["ElementType"]]
        for n in header["DimSize"].split():
            size *= int(n)
    except (KeyError, ValueError):
        return f"{path}: ElementType or DimSize cannot be understood; {AGAIN}."
    found = raw.stat().st_size
    if found < size:
        return f"{path}: its data file {raw.name} is cut short, {found} of {size} bytes; {AGAIN}."
    return f"{path}: its data file {raw.name} has {found} bytes, expected {size}; {AGAIN}." if found > size else ""


def _pair(line: str) -> tuple[str, str]:
    key, _, value = line.partition("=")
    return key.strip(), value.strip()


def _missing_subsets(root: Path, *, simulated: bool) -> list[str]:
    there = [k for k in range(SUBSETS) if luna16.subset_folder(root, k).is_dir()]
    if not there:
        return [f"{root} has no subset0 to subset9; give the folder into which LUNA16's archives were unpacked."]
    if simulated:
        return []
    return [f"subset{k} is missing; unpack subset{k}.zip." for k in range(SUBSETS) if k not in there]


def _tables(root: Path) -> tuple[dict[str, list[Annotation]], dict[str, list[Annotation]], list[str]]:
    found: list[dict[str, list[Annotation]]] = []
    faults = []
    for name, why in (
        (luna16.ANNOTATIONS, "it is on LUNA16's download page"),
        (luna16.EXCLUDED, "it comes with LUNA16's evaluation script"),
    ):
        path = root / name
        found.append({})
        if not path.is_file():
            faults.append(f"{path} is missing; {why}.")
            continue
        try:
            found[-1] = read_annotations(path)
        except TableError as error:
            faults.append(str(error))
    return found[0], found[1], faults


def _unlisted(
    root: Path,
    scans: dict[str, DownloadedScan],
    included: dict[str, list[Annotation]],
    excluded: dict[str, list[Annotation]],
) -> list[str]:
    """Compare the tables with the scans: what is named must be there."""
    listed = root / luna16.SERIES
    series: set[str] = set()
    problems = []
    if listed.is_file():
        try:
            series = set(read_series(listed))
        except TableError as error:
            problems.append(str(error))
    gone = sorted(series - set(scans))
    if gone:
        problems.append(
            _named(f"{luna16.SERIES} lists", gone, "that are missing or broken; unpack their subsets again")
        )
    for name, table in ((luna16.ANNOTATIONS, included), (luna16.EXCLUDED, excluded)):
        strange = sorted(set(table) - set(scans) - series)
        if strange:
            text = "of which there is no scan; take the table that belongs to these scans, or unpack all subsets"
            problems.append(_named(f"{name} has findings of", strange, text))
    return problems


def _named(before: str, uids: list[str], after: str) -> str:
    return f"{before} {len(uids)} series {after}: {', '.join(uids[:5])}{' and more' if len(uids) > 5 else ''}."


def _cohort_rows(root: Path) -> dict[str, tuple[str, str]]:
    """Give person and part of each simulated scan: scans made from one real scan are one person's."""
    path = root / SCANS
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="ascii") as file:
        rows = list(csv.DictReader(file))
    return {row["seriesuid"]: (row["source"] or row["seriesuid"], row["part"]) for row in rows}

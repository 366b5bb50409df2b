"""The judge's CSV tables, read strictly: every fault is told with file, line and what to do.

Columns are found by their names in the header, in any order, and further columns are left alone, as in LUNA16's own
script. What the tables mean is ``froc``'s business.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from training.froc import Annotation, ScoredMark

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

POSITION = ("coordX", "coordY", "coordZ")
SERIES = "seriesuid"
PROBABILITY = "probability"
DIAMETER = "diameter_mm"

MOST_FAULTS = 10
"""Faults told at once; a file with more of them is broken as a whole."""


class TableError(Exception):
    """A table that cannot be judged; the text has a line for each fault: file, line, what was found, what to do."""


class _Row(NamedTuple):
    line: int
    series: str
    numbers: tuple[float, ...]


def read_annotations(path: Path) -> dict[str, list[Annotation]]:
    """Read ``seriesuid,coordX,coordY,coordZ,diameter_mm``; a diameter below 0 means 10 mm.

    Raises
    ------
    TableError
        When the file cannot be read as such a table.
    """
    table: dict[str, list[Annotation]] = defaultdict(list)
    for _, series, (x, y, z, diameter) in _rows(path, (*POSITION, DIAMETER)):
        table[series].append(Annotation((x, y, z), diameter))
    return dict(table)


def read_submission(path: Path) -> dict[str, list[ScoredMark]]:
    """Read ``seriesuid,coordX,coordY,coordZ,probability``, marks in the order of the file.

    Raises
    ------
    TableError
        When the file cannot be read as such a table; a probability that is not a number is a fault.
    """
    table: dict[str, list[ScoredMark]] = defaultdict(list)
    for _, series, (x, y, z, probability) in _rows(path, (*POSITION, PROBABILITY)):
        table[series].append(ScoredMark((x, y, z), probability))
    return dict(table)


def read_findings(path: Path) -> dict[str, list[tuple[ScoredMark, float | None]]]:
    """Read a submission whose marks may have a diameter (``diameter_mm``, in mm).

    Raises
    ------
    TableError
        When the file cannot be read as such a table.
    """
    lines = _lines(path)
    if not lines or DIAMETER not in lines[0][1]:
        return {uid: [(mark, None) for mark in marks] for uid, marks in read_submission(path).items()}
    table: dict[str, list[tuple[ScoredMark, float | None]]] = defaultdict(list)
    for _, series, (x, y, z, probability, diameter) in _rows(path, (*POSITION, PROBABILITY, DIAMETER)):
        table[series].append((ScoredMark((x, y, z), probability), diameter))
    return dict(table)


def read_series(path: Path) -> list[str]:
    """Read the list of series: one a line, in LUNA16's way without a header; a header ``seriesuid`` is passed over.

    Raises
    ------
    TableError
        When the file is empty or lists a series twice (the judge would count it twice).
    """
    lines = [(number, row[0]) for number, row in _lines(path) if row[0] != SERIES or number > 1]
    if not lines:
        raise TableError(f"{path}: lists no series; write one series UID a line.")
    first: dict[str, int] = {}
    faults = []
    for number, series in lines:
        if series in first:
            text = f"series {series} stands in line {first[series]} already and would be counted twice"
            faults.append(f"{path}, line {number}: {text}; delete one of the lines.")
        first.setdefault(series, number)
    _refuse(faults)
    return list(first)


def write_submission(path: Path, marks: Mapping[str, Sequence[ScoredMark]]) -> None:
    """Write marks as LUNA16 takes them; probabilities in full precision, so that none become equal."""
    with path.open("w", newline="", encoding="ascii") as file:
        writer = csv.writer(file)
        writer.writerow([SERIES, *POSITION, PROBABILITY])
        for uid, rows in marks.items():
            for mark in rows:
                writer.writerow([uid, *(f"{v:.6f}" for v in mark.position_mm), repr(mark.probability)])


def _rows(path: Path, numbers: tuple[str, ...]) -> list[_Row]:
    """Read the series and the named numbers of each row."""
    lines = _lines(path)
    if not lines:
        expected = ",".join((SERIES, *numbers))
        raise TableError(f"{path}: the file is empty; its first line must name the columns: {expected}.")
    (first, header), *rest = lines
    columns = _columns(path, first, header, numbers)
    rows: list[_Row] = []
    faults: list[str] = []
    for number, cells in rest:
        found = _row(number, cells, header, columns)
        if isinstance(found, _Row):
            rows.append(found)
        else:
            faults.append(f"{path}, line {number}: {found}")
        if len(faults) > MOST_FAULTS:
            break
    _refuse(faults)
    return rows


def _columns(path: Path, line: int, header: list[str], numbers: tuple[str, ...]) -> list[int]:
    wanted = (SERIES, *numbers)
    faults = []
    for name in wanted:
        times = header.count(name)
        if times == 0:
            faults.append(
                f"{path}, line {line}: column {name} is missing; found {','.join(header)}, expected "
                f"{','.join(wanted)} (spelled so, in any order)."
            )
        elif times > 1:
            faults.append(f"{path}, line {line}: column {name} stands there {times} times; keep one.")
    _refuse(faults)
    return [header.index(name) for name in wanted]


def _row(number: int, cells: list[str], header: list[str], columns: list[int]) -> _Row | str:
    if cells == header:
        return "the header stands here again (were files joined?); delete the line."
    if len(cells) != len(header):
        return f"{len(cells)} values where the header names {len(header)} columns; complete or delete the line."
    values = []
    for column in columns[1:]:
        value = _number(cells[column])
        if value is None:
            return f"{header[column]} is '{cells[column]}'; a finite number with a decimal point is needed."
        values.append(value)
    series = cells[columns[0]]
    return _Row(number, series, tuple(values)) if series else "seriesuid is empty; write the series UID."


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Read the lines that are not blank, with their numbers from 1."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            return [(reader.line_num, row) for row in reader if any(row)]
    except UnicodeDecodeError as error:
        raise TableError(f"{path}: not a text file (byte {error.start}); give the unpacked CSV.") from error
    except csv.Error as error:
        raise TableError(f"{path}: not a CSV table ({error}); give the unpacked CSV.") from error
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({error.strerror}).") from error


def _refuse(faults: list[str]) -> None:
    if len(faults) > MOST_FAULTS:
        faults = [*faults[:MOST_FAULTS], "... and more."]
    if faults:
        raise TableError("\n".join(faults))

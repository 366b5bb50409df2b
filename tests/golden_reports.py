"""The golden reports: how they are made, and the command that writes them anew (see ``tests/golden/README.md``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from tests.reports import analysis, covering, frozen, not_analysed, written

if TYPE_CHECKING:
    from sr_writer.record import ReportRecord

FOLDER = Path(__file__).parent / "golden"


def records() -> dict[str, ReportRecord]:
    """The frozen results, by the name of their golden file."""
    return {
        "report-findings": frozen(covering(analysis())),
        "report-no-findings": frozen(covering(analysis(()))),
        "report-not-analysed": frozen(not_analysed()),
    }


def readable(document: Dataset) -> dict[str, Any]:
    """A document as plain values by keyword."""
    return {"file_meta": _plain(document.file_meta)} | _plain(document)


def _plain(dataset: Dataset) -> dict[str, Any]:
    return {element.keyword: _value(element.value) for element in dataset if element.keyword}


def _value(value: Any) -> Any:
    if isinstance(value, Dataset):
        return _plain(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, int | float) and not hasattr(value, "original_string"):
        return value
    if isinstance(value, MultiValue | list) or type(value).__name__ == "Sequence":
        return [_value(v) for v in value]
    return None if value is None or str(value) == "" else str(value)


def as_text(record: ReportRecord) -> str:
    """The golden file of a record."""
    return json.dumps(readable(written(record)), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name, record in records().items():
        (FOLDER / f"{name}.json").write_text(as_text(record), encoding="utf-8")

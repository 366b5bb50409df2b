"""Header elements as bytes: read without trusting them, copied without decoding them.

A data set read from a file holds raw elements until somebody asks for a value. They stay raw here, so a name in
any character set, right or wrong, leaves as it came.
"""

from __future__ import annotations

import io
import math
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pydicom import dcmwrite
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import VR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydicom.sequence import Sequence as ItemSequence

_TEXT = frozenset(
    {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"}
)
_LONGEST = 0xFFFE  # bytes in an explicit VR element with a two-byte length, PS3.5 7.1.2


def text_of(dataset: Dataset, keyword: str) -> str:
    """Read an element as text, bytes taken for Latin-1, padding removed; empty where there is none."""
    element = dataset.get_item(_tag(keyword))
    if element is None or element.value is None:
        return ""
    if isinstance(element, RawDataElement):
        return bytes(element.value).decode("latin-1").strip(" \0")
    value = element.value
    text = "\\".join(map(str, value)) if element.VM > 1 else str(value)
    return text.strip(" \0")


def numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Read exactly ``count`` finite numbers of a DS or IS element, or nothing."""
    texts = text_of(dataset, keyword).split("\\")
    try:
        values = tuple(float(text) for text in texts)
    except ValueError:
        return None
    return values if len(values) == count and all(map(math.isfinite, values)) else None


def whole_number(dataset: Dataset, keyword: str) -> int | None:
    """Read a US element, or nothing."""
    element = dataset.get_item(_tag(keyword))
    if isinstance(element, RawDataElement):
        value = bytes(element.value or b"")
        return int.from_bytes(value, "little" if element.is_little_endian else "big") if len(value) == 2 else None
    return element.value if element is not None and isinstance(element.value, int) else None


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Read the items of a sequence; a missing or damaged one has none."""
    tag = _tag(keyword)
    if tag not in dataset:
        return []
    try:
        with _quiet():
            value = dataset[tag].value
            return list(value) if dataset[tag].VR == VR.SQ else []
    except Exception:  # noqa: BLE001 - pydicom raises anything on damaged bytes, and no copied sequence is mandatory
        return []


def copied(dataset: Dataset, keyword: str) -> RawDataElement | DataElement | None:
    """Give an element with its bytes as received and the VR of the dictionary; ``None`` where there is none.

    An element whose value was decoded before is given as it is.
    """
    element = dataset.get_item(_tag(keyword))
    if not isinstance(element, RawDataElement):
        return element
    value = bytes(element.value or b"")
    return from_bytes(keyword, value) if len(value) <= _LONGEST else None


def from_text(keyword: str, text: str) -> RawDataElement:
    """Make an element of a text that is written as it is, also where it breaks the rules of its VR."""
    return from_bytes(keyword, text.encode("latin-1", "replace"))


def from_bytes(keyword: str, value: bytes) -> RawDataElement:
    """Make an element of bytes that are written as they are, padded to even length."""
    tag = _tag(keyword)
    vr = dictionary_VR(tag)
    if len(value) % 2:
        value += b"\0" if vr == VR.UI else b" "
    return RawDataElement(tag, vr, len(value), value, 0, False, True)


def put(target: Dataset, element: RawDataElement | DataElement | None) -> None:
    """Set an element, raw or not; ``None`` changes nothing."""
    if element is not None:
        target[element.tag] = element


def copied_items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Copy the items of a sequence: text as received, private, unknown and binary elements left out."""
    return [copy for item in items(dataset, keyword) if len(copy := _copied_item(item))]


def encode(document: Dataset) -> bytes:
    """Write a document as the bytes of a DICOM file, Explicit VR Little Endian, raw elements unchanged.

    pydicom would parse and re-encode raw elements of a data set that it did not read itself; every data set of
    the document is therefore declared to be read in the encoding it is written in.
    """
    out = io.BytesIO()
    with _quiet():
        for dataset in _nested(document):
            dataset.set_original_encoding(False, True, dataset._character_set)
        dcmwrite(out, document, enforce_file_format=True)
    return out.getvalue()


def _copied_item(item: Dataset) -> Dataset:
    copy = Dataset()
    for tag in list(item.keys()):
        keyword = keyword_for_tag(tag)
        vr = dictionary_VR(tag) if keyword else None
        if vr == VR.SQ:
            setattr(copy, keyword, copied_items(item, keyword))
        elif vr in _TEXT:
            put(copy, copied(item, keyword))
    return copy


def _nested(dataset: Dataset) -> Iterator[Dataset]:
    yield dataset
    for element in dataset.values():
        if not isinstance(element, RawDataElement) and element.VR == VR.SQ:
            sequence: ItemSequence = element.value
            for item in sequence:
                yield from _nested(item)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pydicom from warning of each odd value of the images: they were judged when they were received."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _tag(keyword: str) -> BaseTag:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(f"{keyword} is not an attribute of the dictionary.")
    return Tag(tag)

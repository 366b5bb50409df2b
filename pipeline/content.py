"""Whether two files hold one image in two encodings: an archive may decompress what it sends a second time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydicom import dcmread

from pipeline.domain.outcome import Refusal
from pipeline.pixels import read_pixels
from pipeline.slices import Instance, open_dataset, quiet_parser, read_instance

if TYPE_CHECKING:
    from pathlib import Path

    from pydicom.dataset import Dataset

ENCODING = frozenset({0x7FE00001, 0x7FE00002, 0x7FE00010, 0xFFFCFFFC})
"""Pixel Data with its offset tables, and Data Set Trailing Padding: compared by what they mean, or meaningless."""


def same_content(one: Path, other: Path) -> bool:
    """Say whether two files hold equal values and equal pixels, however encoded.

    Group lengths, the file meta information and the padding behind a data set are part of the encoding. Files that
    cannot be read hold nothing that could be called equal.
    """
    with quiet_parser():
        first, second = read_instance(one), read_instance(other)
        if not (isinstance(first, Instance) and isinstance(second, Instance)):
            return False
        values = _values(one)
        return values is not None and values == _values(other) and _same_pixels(first, second)


def _values(path: Path) -> Dataset | None:
    """All elements that mean something; ``None`` where one cannot be read."""
    try:
        with open_dataset(path) as (stream, size):
            dataset = dcmread(stream, defer_size=size)
            for tag in tuple(dataset.keys()):
                if tag.element == 0 or tag in ENCODING:
                    del dataset[tag]
            dataset.decode()
    except Exception:  # noqa: BLE001  a hostile file may raise anything in the parser
        return None
    return dataset


def _same_pixels(first: Instance, second: Instance) -> bool:
    if not first.slices or len(first.slices) != len(second.slices):
        return False
    for one, other in zip(read_pixels(first.slices), read_pixels(second.slices), strict=True):
        if isinstance(one, Refusal) or isinstance(other, Refusal) or not np.array_equal(one.hu, other.hu):
            return False
    return True

"""LUNA16's layout on disk: subset0 to subset9 of MetaImages, and the tables beside them.

Owns file names, columns and the header of a MetaImage. What lies in the images is others' business. For the layout
see the Data page of the LUNA16 challenge (Setio et al., Med Image Anal 2017); its scans are `.mhd` with `.raw`, its
lung masks `.mhd` with `.zraw`.
"""

from __future__ import annotations

import csv
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pipeline.domain.geometry import Grid

ANNOTATIONS = "annotations.csv"
EXCLUDED = "annotations_excluded.csv"
CANDIDATES = "candidates_V2.csv"
SERIES = "seriesuids.csv"
LUNGS = "seg-lungs-LUNA16"
POSITION = ("coordX", "coordY", "coordZ")
ANNOTATION_COLUMNS = ("seriesuid", *POSITION, "diameter_mm")
CANDIDATE_COLUMNS = ("seriesuid", *POSITION, "class")


def subset_folder(root: Path, subset: int) -> Path:
    """Give the folder of a subset."""
    return root / f"subset{subset}"


def write_metaimage(path: Path, hu: NDArray[np.int16], grid: Grid) -> None:
    """Write a volume as ``NAME.raw`` and ``NAME.mhd``, the header last: a header without voxels never exists.

    Parameters
    ----------
    path
        The ``.mhd``.
    hu
        int16, shape ``(z, y, x)``.
    grid
        Where it lies; LPS mm.
    """
    content = hu.astype("<i2").tobytes()
    _write_pair(path, path.with_suffix(".raw"), content, _header(grid) | {"ElementType": "MET_SHORT"})


def write_lungs(path: Path, lungs: NDArray[np.uint8], grid: Grid) -> None:
    """Write a lung mask as LUNA16 does, ``NAME.mhd`` and compressed ``NAME.zraw``: 3 left, 4 right, else 0."""
    content = zlib.compress(lungs.astype(np.uint8).tobytes(), level=1)
    fields = {"CompressedData": "True", "CompressedDataSize": str(len(content)), "ElementType": "MET_UCHAR"}
    _write_pair(path, path.with_suffix(".zraw"), content, _header(grid) | fields)


def _header(grid: Grid) -> dict[str, str]:
    """Give the fields that say where voxels lie; TransformMatrix is the direction of x, then of y, then of z."""
    directions = [value for axis in reversed(grid.axes_zyx) for value in axis]
    return {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": " ".join(f"{v:.9g}" for v in directions),
        "Offset": " ".join(f"{v:.6f}" for v in grid.origin_lps_mm),
        "CenterOfRotation": "0 0 0",
        "AnatomicalOrientation": "RAI",
        "ElementSpacing": " ".join(f"{v:.6f}" for v in reversed(grid.spacing_zyx_mm)),
        "DimSize": " ".join(str(n) for n in reversed(grid.shape_zyx)),
    }


def _write_pair(path: Path, data: Path, content: bytes, fields: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = data.with_name(f"{data.name}.part")
    aside.write_bytes(content)
    aside.replace(data)
    fields = fields | {"ElementDataFile": data.name}
    write_text(path, "".join(f"{key} = {value}\n" for key, value in fields.items()))


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV table with its header, aside first, then renamed."""
    aside = path.with_suffix(".csv.part")
    with aside.open("w", newline="", encoding="ascii") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    aside.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a small ASCII file, aside first, then renamed."""
    aside = path.with_name(f"{path.name}.part")
    aside.write_text(text, encoding="ascii")
    aside.replace(path)

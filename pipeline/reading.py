"""A folder of DICOM files to an inventory by series, or a MetaImage to a Volume."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.assemble import MAX_BYTES, implausible
from pipeline.domain.geometry import Grid
from pipeline.domain.outcome import Code, Refusal
from pipeline.domain.volume import ReceivedGeometry, Volume
from pipeline.pixels import HU_RANGE
from pipeline.slices import Instance, Unreadable, quiet_parser, read_instance

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import SimpleITK
    from numpy.typing import NDArray

METAIMAGE_ENDINGS = frozenset({".mhd", ".mha"})


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a folder holds.

    Attributes
    ----------
    series
        Readable files by (study UID, series UID), in the order of first sight.
    unreadable
        Damaged or oversized DICOM files, with the reason.
    skipped
        Number of files that are not DICOM.
    """

    series: Mapping[tuple[str, str], tuple[Instance, ...]]
    unreadable: tuple[Unreadable, ...]
    skipped: int


def files_in(folder: Path) -> list[Path]:
    """Every file below a folder, whatever its ending, in the order of names.

    Raises
    ------
    OSError
        When the folder cannot be opened.
    """
    if folder.is_file():
        return [folder]
    next(folder.iterdir(), None)
    return sorted(p for p in folder.rglob("*") if p.is_file())


def read_headers(paths: Iterable[Path]) -> Inventory:
    """Read the headers of many files and group them by series; pixels are not read."""
    series: dict[tuple[str, str], list[Instance]] = defaultdict(list)
    unreadable: list[Unreadable] = []
    skipped = 0
    with quiet_parser():
        for path in paths:
            found = read_instance(path)
            if found is None:
                skipped += 1
            elif isinstance(found, Unreadable):
                unreadable.append(found)
            else:
                series[found.study_uid, found.series_uid].append(found)
    return Inventory({key: tuple(found) for key, found in series.items()}, tuple(unreadable), skipped)


def read_metaimage(path: Path) -> Volume | Refusal:
    """Read a MetaImage (``.mhd`` or ``.mha``) of Hounsfield units, as LUNA16 ships them.

    Axes are permuted and flipped so that x, y and z grow towards L, P and S; positions stay where the direction
    matrix puts them. The file's stem becomes the series UID.

    Returns
    -------
    Volume or Refusal
        ``CORRUPT_INSTANCE`` for a file that cannot be read, ``NO_GEOMETRY`` when it is not a three-dimensional
        image on a regular grid, ``TOO_LARGE``, ``HU_IMPLAUSIBLE``.
    """
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        fault = _metaimage_fault(reader)
        image = None if fault else SimpleITK.DICOMOrient(reader.Execute(), "LPS")
    except RuntimeError:
        fault, image = (
            Refusal(Code.CORRUPT_INSTANCE, "The MetaImage is damaged, cut short, or lacks its data file."),
            None,
        )
    if image is None:
        return fault or Refusal(Code.CORRUPT_INSTANCE, "The MetaImage could not be read.")
    hu = np.clip(np.rint(SimpleITK.GetArrayViewFromImage(image)), *HU_RANGE).astype(np.int16)
    return implausible(hu) or _volume(hu, image, path.stem)


def _metaimage_fault(reader: SimpleITK.ImageFileReader) -> Refusal | None:
    size = reader.GetSize()
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1 or min(size) < 2:
        return Refusal(Code.NO_GEOMETRY, "The MetaImage is not a three-dimensional image of one value per voxel.")
    if int(np.prod([int(n) for n in size])) * 2 > MAX_BYTES:
        return Refusal(Code.TOO_LARGE, f"The MetaImage claims {size[0]} x {size[1]} x {size[2]} voxels.")
    direction = np.asarray(reader.GetDirection()).reshape(3, 3)
    if np.abs(direction.T @ direction - np.eye(3)).max() > 1e-3:
        return Refusal(Code.BAD_ORIENTATION, "The axes of the MetaImage are not at right angles.")
    return None


def _volume(hu: NDArray[np.int16], image: SimpleITK.Image, name: str) -> Volume:
    hu.flags.writeable = False
    direction = np.asarray(image.GetDirection()).reshape(3, 3)
    z, y, x = ((float(a[0]), float(a[1]), float(a[2])) for a in direction.T[::-1])
    sx, sy, sz = image.GetSpacing()
    ox, oy, oz = image.GetOrigin()
    slices, rows, columns = hu.shape
    grid = Grid((slices, rows, columns), (sz, sy, sx), (ox, oy, oz), (z, y, x))
    extent = (slices * sz, rows * sy, columns * sx)
    return Volume(hu, grid, "", name, (), ReceivedGeometry(slices, (sz, sy, sx), extent))

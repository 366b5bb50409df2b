"""Where to look: a generous mask of the lungs on a coarse grid, or the reason why there is none.

The mask bounds the detector's work. It never blanks a voxel, so that no nodule at the pleura meets an artificial
edge. Nothing here knows patient space; indices are voxels of the volume, lengths are millimetres along its axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from pipeline.domain.outcome import Code, Notice, Refusal

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipeline.domain.geometry import Vector
    from pipeline.domain.limits import SelectionLimits

    Mask = NDArray[np.bool_]
    Index = tuple[int, int, int]

CELL_MM = 2.8  # coarse enough for one second a scan, fine against the 8 mm margin
AIR_HU = -400.0  # between lung with partial volume and soft tissue
CLOSING_MM = 9.0  # closes over vessels at the hilum and over nodules at the pleura
MARGIN_MM = 8.0  # decision 0011: every LIDC nodule lies inside
LESSER_LUNG = 0.15  # a further air space counts as lung from this part of the largest one on
OPEN_LUNG_MM2 = 600.0  # area from which air in an end slice is cut lung; a trachea has at most 400
BEYOND_HU = -1020  # padding around a circular scan field: darker than any air, in every slice
AERATED_HU = (-900, -500)  # lung that breathes; the foam of a table, pressed against the back, has -920 and less
MOSTLY = 0.7  # part of a cut space that is as dense as lung; around a patient it is far less
MOST_OF_EDGE = 0.4  # part of the scan field's edge that cut lung may reach; the air around a patient has more
EMPTY_HU = -970.0  # below it there is no tissue, not even that of an emphysematous lung
IN_PLANE = np.array([[[0, 0, 0]] * 3, [[0, 1, 0], [1, 1, 1], [0, 1, 0]], [[0, 0, 0]] * 3], bool)


@dataclass(frozen=True, slots=True, eq=False)
class LungMask:
    """Where nodules are searched.

    Attributes
    ----------
    search
        Cells to search, shape ``(z, y, x)`` of the coarse grid: lungs, closed and widened by 8 mm.
    lungs
        Cells of the lungs themselves, vessels inside included; same shape.
    strides_zyx
        Voxels of the volume in one cell along each axis; cell ``k`` holds voxels ``k*stride`` to
        ``(k+1)*stride - 1``.
    shape_zyx
        Shape of the volume; voxels.
    volume_l
        Volume of the lungs; litres.
    notices
        ``LUNG_CUT``, ``LUNG_MASK_UNUSED``.
    """

    search: Mask
    lungs: Mask
    strides_zyx: Index
    shape_zyx: Index
    volume_l: float
    notices: tuple[Notice, ...] = ()

    def bounds(self) -> tuple[Index, Index]:
        """Give the first voxel of the box around the search region and the voxel behind its last one."""
        start, stop = [], []
        for axis, (stride, size) in enumerate(zip(self.strides_zyx, self.shape_zyx, strict=True)):
            cells = np.flatnonzero(self.search.any(axis=tuple(a for a in range(3) if a != axis)))
            start.append(int(cells[0]) * stride)
            stop.append(min((int(cells[-1]) + 1) * stride, size))
        return (start[0], start[1], start[2]), (stop[0], stop[1], stop[2])

    def search_at(self, z: NDArray[np.float64], y: NDArray[np.float64], x: NDArray[np.float64]) -> Mask:
        """Look up the search region on the lattice spanned by three vectors of continuous voxel indices.

        Returns
        -------
        Mask
            Shape ``(len(z), len(y), len(x))``; ``False`` outside the volume.
        """
        return _lookup(self.search, self.strides_zyx, self.shape_zyx, (z, y, x))

    def lungs_at(self, z: NDArray[np.float64], y: NDArray[np.float64], x: NDArray[np.float64]) -> Mask:
        """Look up the lungs themselves, as :meth:`search_at` does the search region."""
        return _lookup(self.lungs, self.strides_zyx, self.shape_zyx, (z, y, x))


def find_lungs(hu: NDArray[np.int16], spacing_zyx_mm: Vector, limits: SelectionLimits) -> LungMask | Refusal:
    """Find the lungs of an axial chest CT.

    Parameters
    ----------
    hu
        Hounsfield units, shape ``(z, y, x)``, z along the slice normal.
    spacing_zyx_mm
        Distance between neighbouring voxels; mm.
    limits
        Which lung volumes are believed: ``min_lung_l`` and ``max_lung_l``.

    Returns
    -------
    LungMask or Refusal
        ``NO_LUNG_FOUND`` when the air inside the body is less than a chest has.
    """
    strides = _strides(spacing_zyx_mm)
    cell_mm = np.asarray(strides) * np.asarray(spacing_zyx_mm)
    coarse = _block_means(hu, strides)
    body = _body(coarse)
    open_sides = _open_at_image_edge(body, coarse, cell_mm) | _open_at_scan_field(body, coarse, cell_mm)
    body |= open_sides
    lungs = _largest(body & (coarse < AIR_HU))
    lungs = _enclosed(_closed(lungs, cell_mm)) & body
    litres = float(lungs.sum() * np.prod(cell_mm)) / 1e6
    if litres < limits.min_lung_l:
        return Refusal(
            Code.NO_LUNG_FOUND,
            f"The air inside the body measures {litres:.1f} l, expected at least {limits.min_lung_l:.1f} l; "
            "check that this is a chest CT in Hounsfield units.",
        )
    believed = litres <= limits.max_lung_l
    search = _widened(lungs if believed else body, cell_mm)
    notices = _cut(lungs, open_sides, cell_mm) if believed else _unused(litres, limits.max_lung_l)
    shape = (hu.shape[0], hu.shape[1], hu.shape[2])
    return LungMask(search, lungs, strides, shape, litres, notices)


def _strides(spacing_zyx_mm: Vector) -> Index:
    z, y, x = (max(1, round(CELL_MM / spacing)) for spacing in spacing_zyx_mm)
    return z, y, x


def _block_means(hu: NDArray[np.int16], strides: Index) -> NDArray[np.int16]:
    """Average blocks of voxels, one axis after the other; a last incomplete block repeats its last voxel."""
    for axis, stride in enumerate(strides):
        if stride == 1:
            continue
        before = (slice(None),) * axis
        total = hu[*before, ::stride].astype(np.int32)
        for offset in range(1, stride):
            piece = hu[*before, offset::stride]
            whole = piece.shape[axis]
            total[*before, :whole] += piece
            total[*before, whole:] += hu[*before, -1:]
        hu = (total // stride).astype(np.int16)
    return hu


def _body(coarse: NDArray[np.int16]) -> Mask:
    """The patient without table and outside air: the largest solid piece, filled slice by slice.

    Thin things, such as the table's shell, vanish in the opening; what the opening took from the chest wall comes
    back by two cells of growth inside what is solid.
    """
    solid = coarse >= AIR_HU
    core = _largest(ndimage.binary_opening(solid, ndimage.generate_binary_structure(3, 1)), lesser=1.0)
    wall = ndimage.binary_dilation(core, ndimage.generate_binary_structure(3, 1), iterations=2, mask=solid)
    return _enclosed(wall)


def _enclosed(mask: Mask, open_axes: tuple[int, ...] = (1, 2)) -> Mask:
    """Fill what the mask encloses within each slice; lungs that are open at the volume's ends stay lungs.

    Across the image's edges at both ends of ``open_axes`` lies the outside; the other edges count as walls.
    """
    outside, _ = ndimage.label(~mask, IN_PLANE)
    at_edge = np.zeros(int(outside.max()) + 1, bool)
    for axis in open_axes:
        for end in (0, -1):
            at_edge[np.take(outside, end, axis).ravel()] = True
    at_edge[0] = False
    return ~at_edge[outside]


def _open_at_image_edge(body: Mask, coarse: NDArray[np.int16], cell_mm: NDArray[np.float64]) -> Mask:
    """Find lung that a narrow field of view cuts: it opens onto one side of the image, never onto the air around.

    The air around a patient reaches two sides that meet; what the body and one pair of sides enclose does not.
    """
    pocket = (_enclosed(body, (1,)) | _enclosed(body, (2,))) & ~body & (coarse < AIR_HU) & (coarse > EMPTY_HU)
    pieces, _ = ndimage.label(pocket, IN_PLANE)
    wide = np.bincount(pieces.ravel()) * float(cell_mm[1] * cell_mm[2]) > OPEN_LUNG_MM2
    wide[0] = False
    return np.asarray(wide[pieces])


def _open_at_scan_field(body: Mask, coarse: NDArray[np.int16], cell_mm: NDArray[np.float64]) -> Mask:
    """Find lung that a corner of the image, or a circular scan field, cuts: a space of lung between body and edge.

    The air around a patient is a space at the edge too, but one of air and foam.
    """
    beyond = np.all(coarse <= BEYOND_HU, axis=0)
    edge = ndimage.binary_dilation(beyond)
    edge[[0, -1]] = edge[:, [0, -1]] = True
    edge &= ~beyond
    pieces, count = ndimage.label(~body & ~beyond, IN_PLANE)
    inner = np.where(ndimage.binary_dilation(body | beyond, IN_PLANE), 0, pieces).ravel()  # no partial volume
    like_lung = ((coarse > AERATED_HU[0]) & (coarse < AERATED_HU[1])).ravel()
    sizes = np.bincount(inner, minlength=count + 1)
    alike = np.bincount(inner, like_lung, count + 1)
    lung = (alike >= MOSTLY * sizes) & (alike * float(cell_mm[1] * cell_mm[2]) > OPEN_LUNG_MM2)
    at_edge = np.bincount(pieces[:, edge].ravel(), minlength=count + 1)
    at_body = np.bincount(pieces[ndimage.binary_dilation(body, IN_PLANE)].ravel(), minlength=count + 1)
    lung &= (at_edge > 0) & (at_edge <= MOST_OF_EDGE * edge.sum()) & (2 * at_body >= at_edge)
    lung[0] = False
    return np.asarray(lung[pieces])


def _largest(mask: Mask, lesser: float = LESSER_LUNG) -> Mask:
    """Keep the largest connected piece and those with at least a part ``lesser`` of its size."""
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    keep = sizes >= max(1.0, lesser * sizes.max())
    if lesser >= 1.0:
        keep = np.arange(len(sizes)) == int(np.argmax(sizes))
    return np.asarray(keep[labels])


def _closed(mask: Mask, cell_mm: NDArray[np.float64]) -> Mask:
    """Close gaps and bays up to twice ``CLOSING_MM`` wide; the volume's ends count as open."""
    if not mask.any():
        return mask
    reach = np.ceil(CLOSING_MM / cell_mm).astype(int) + 1
    box = _box(mask, reach)
    padded = np.pad(mask[box], [(int(n), int(n)) for n in reach], mode="edge")
    grown = ndimage.distance_transform_edt(~padded, sampling=cell_mm) <= CLOSING_MM
    closed = ndimage.distance_transform_edt(grown, sampling=cell_mm) > CLOSING_MM
    result = mask.copy()
    result[box] |= closed[tuple(slice(int(n), -int(n)) for n in reach)]
    return result


def _widened(mask: Mask, cell_mm: NDArray[np.float64]) -> Mask:
    if not mask.any():
        return np.ones_like(mask)  # only a limit of 0 l comes here: nothing is known, so all is searched
    box = _box(mask, np.ceil(MARGIN_MM / cell_mm).astype(int))
    result = np.zeros_like(mask)
    result[box] = ndimage.distance_transform_edt(~mask[box], sampling=cell_mm) <= MARGIN_MM
    return result


def _box(mask: Mask, reach: NDArray[np.int_]) -> tuple[slice, ...]:
    """Give the box that holds the mask and so many cells around it: what lies farther away cannot matter."""
    around = ndimage.find_objects(mask.view(np.uint8))[0]
    return tuple(slice(max(0, s.start - int(n)), s.stop + int(n)) for s, n in zip(around, reach, strict=True))


def _cut(lungs: Mask, open_sides: Mask, cell_mm: NDArray[np.float64]) -> tuple[Notice, ...]:
    area_mm2 = float(cell_mm[1] * cell_mm[2])
    ends = [name for name, k in (("first", 0), ("last", -1)) if _widest_piece(lungs[k]) * area_mm2 > OPEN_LUNG_MM2]
    places = [f"{' and the '.join(ends)} slice"] if ends else []
    if (lungs & open_sides).any():
        places.append("edge of the image")
    return tuple(
        Notice(Code.LUNG_CUT, f"The lungs reach the {place}; parts of them are not seen.") for place in places
    )


def _widest_piece(plane: Mask) -> int:
    labels, count = ndimage.label(plane)
    return int(np.bincount(labels.ravel())[1:].max()) if count else 0


def _unused(litres: float, limit: float) -> tuple[Notice, ...]:
    text = f"The lung mask measures {litres:.1f} l, more than {limit:.1f} l; the whole body was searched."
    return (Notice(Code.LUNG_MASK_UNUSED, text),)


def _lookup(mask: Mask, strides: Index, shape: Index, indices: tuple[NDArray[np.float64], ...]) -> Mask:
    cells, inside = [], []
    for index, stride, size in zip(indices, strides, shape, strict=True):
        inside.append((index >= -0.5) & (index <= size - 0.5))
        cells.append(np.clip(np.rint(index).astype(np.int64), 0, size - 1) // stride)
    found = mask[np.ix_(*cells)]
    return np.asarray(found & inside[0][:, None, None] & inside[1][:, None] & inside[2])

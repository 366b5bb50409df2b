"""Slices to a Volume, or the reason why not.

Every decision rests on Image Position and Orientation alone, never on file names, Instance Number, Slice Location
or spacing tags. Knows no DICOM library: pixels come from a callable, straight into one array.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from pipeline.domain.geometry import Grid
from pipeline.domain.outcome import Code, Notice, Refusal
from pipeline.domain.volume import ReceivedGeometry, SliceReference, Volume
from pipeline.seams import notice_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from pipeline.domain.geometry import SlicePlane
    from pipeline.domain.limits import SelectionLimits
    from pipeline.pixels import Pixels
    from pipeline.slices import Slice

    ReadPixels = Callable[[Sequence[Slice]], Iterable[Pixels | Refusal]]
    SamePixels = Callable[[Slice, Slice], bool]

ORIENTATION_TOLERANCE = 1e-3
UNIT_TOLERANCE = 1e-3
PIXEL_SPACING_TOLERANCE_MM = 1e-4
SAME_POSITION_MM = 0.01
SPACING_TOLERANCE = 0.05
SPACING_TOLERANCE_MM = 0.02
DRIFT = 0.25
"""Farthest a slice may lie from its place in the even grid, in slice distances: small steps may add up."""
MINORITY = 2
FEWEST_SLICES = 8
"""Fewer say too little of their spacing to judge it."""
MAX_STACKS = 8
MAX_BYTES = 2 * 1024**3
GAP_RATIO = 1.25
AIR_HU, TOP_HU = -1024, 3071
SANITY_STRIDE = 4
AIR_BELOW_HU, TISSUE_HU, TISSUE_PART = -800, (-100, 100), 0.02


@dataclass(frozen=True, slots=True)
class Stack:
    """Where the voxels of a volume will lie, and which image fills which part of it.

    Attributes
    ----------
    slices
        One for each position, in the order of z.
    z_indices
        Index along z of each slice; what is left out is filled in.
    shifts_px
        For each slice the place ``(row, column)`` of its first pixel in the grid; pixels.
    grid
        Grid of the volume; LPS mm.
    spacing_mm
        Distance between slices.
    thickness_mm
        Median Slice Thickness; the distance between slices where it is missing.
    tilt_deg
        Angle between the slices' normal and the direction in which they follow each other.
    notices
        What was dropped, filled in or corrected.
    """

    slices: tuple[Slice, ...]
    z_indices: tuple[int, ...]
    shifts_px: tuple[tuple[float, float], ...]
    grid: Grid
    spacing_mm: float
    thickness_mm: float
    tilt_deg: float
    notices: tuple[Notice, ...]

    @property
    def missing(self) -> tuple[int, ...]:
        """Indices along z that no slice fills."""
        return tuple(sorted(set(range(self.grid.shape_zyx[0])) - set(self.z_indices)))

    @property
    def axial_angle_deg(self) -> float:
        """Angle to the patient's long axis, of the normal or of the table's way, whichever is smaller; degrees."""
        first, last = (_plane(s).origin_lps_mm for s in (self.slices[0], self.slices[-1]))
        way = np.subtract(last, first)
        across = (math.hypot(v[0], v[1]) for v in (way, _plane(self.slices[0]).normal))
        along = (abs(float(v[2])) for v in (way, _plane(self.slices[0]).normal))
        return math.degrees(min(math.atan2(a, b) for a, b in zip(across, along, strict=True)))


def plan(slices: Sequence[Slice], limits: SelectionLimits, same_pixels: SamePixels) -> tuple[Stack | Refusal, ...]:
    """Find the volumes that the slices of one series can form.

    Parameters
    ----------
    slices
        All slices of the series, in any order.
    limits
        Limits on tilt, missing slices and size.
    same_pixels
        Whether two images that share a position hold the same pixels; asked only for those.

    Returns
    -------
    tuple of Stack or Refusal
        At least one, the stacks with most slices first. Refusals: ``LOCALIZER_ONLY``, ``NO_GEOMETRY``,
        ``BAD_ORIENTATION``, ``MIXED_GEOMETRY``, ``DUPLICATE_POSITIONS``, ``MISSING_SLICES``,
        ``IRREGULAR_SPACING``, ``TILT_TOO_LARGE``, ``TOO_FEW_SLICES``, ``TOO_LARGE``.

    References
    ----------
    PS3.3 C.7.6.2.1.1; decision 0001.
    """
    if len(slices) > limits.max_instances:
        return (
            Refusal(Code.TOO_LARGE, f"{len(slices)} images in one series; the limit is {limits.max_instances}."),
        )
    images = [s for s in slices if "LOCALIZER" not in s.image_type]
    if not images:
        return (Refusal(Code.LOCALIZER_ONLY, f"Only scout images were received ({len(slices)} of them)."),)
    placed = sorted(
        (s for s in images if s.plane is not None), key=lambda s: (s.sop_instance_uid, s.frame_number or 0)
    )
    if not placed:
        text = f"None of {len(images)} images has a position, orientation and pixel spacing; send them as scanned."
        return (Refusal(Code.NO_GEOMETRY, text),)
    groups = _groups_of_one_shape(placed)
    kept = [g for g in groups if len(g) > MINORITY] or groups
    stacks = [_saying_what_it_lacks(s, len(slices)) for g in kept for s in _stacks_of_group(g, limits, same_pixels)]
    return _mixed(stacks, placed, kept, limits) or tuple(sorted(stacks, key=_size, reverse=True))


def _size(stack: Stack | Refusal) -> int:
    return 0 if isinstance(stack, Refusal) else len(stack.slices)


def _mixed(
    stacks: Sequence[Stack | Refusal],
    placed: Sequence[Slice],
    groups: Sequence[Sequence[Slice]],
    limits: SelectionLimits,
) -> tuple[Refusal] | None:
    """Say MIXED_GEOMETRY when the images together would be enough, but no part of one shape is."""
    if len(groups) < 2 or max(map(_size, stacks)) >= limits.min_slices or len(placed) < limits.min_slices:
        return None
    text = (
        f"{len(placed)} slices have {len(groups)} different sizes, pixel spacings or orientations "
        "and cannot form one volume."
    )
    return (Refusal(Code.MIXED_GEOMETRY, text),)


def _saying_what_it_lacks(stack: Stack | Refusal, images: int) -> Stack | Refusal:
    """Notice what of the series is not in a stack: of several stacks only one is analysed."""
    if isinstance(stack, Refusal) or len(stack.slices) == images:
        return stack
    text = (
        f"{images - len(stack.slices)} of {images} images of the series were left out: scout, odd or repeated "
        "ones, or those of another volume."
    )
    return replace(stack, notices=(Notice(Code.EXTRA_IMAGES_DROPPED, text), *stack.notices))


def _plane(piece: Slice) -> SlicePlane:
    if piece.plane is None:
        raise ValueError("slices without a plane are left out before")
    return piece.plane


def _groups_of_one_shape(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Part slices by orientation, matrix size and pixel spacing, the largest group first."""
    groups: list[list[Slice]] = []
    for piece in slices:
        group = next((g for g in groups if _same_shape(_plane(g[0]), _plane(piece))), None)
        if group is None:
            groups.append([piece])
        else:
            group.append(piece)
    return sorted(groups, key=len, reverse=True)


def _same_shape(a: SlicePlane, b: SlicePlane) -> bool:
    turn = np.abs(np.subtract(a.along_row + a.along_column, b.along_row + b.along_column)).max()
    spacing = max(abs(a.row_spacing_mm - b.row_spacing_mm), abs(a.column_spacing_mm - b.column_spacing_mm))
    same_size = (a.rows, a.columns) == (b.rows, b.columns)
    return bool(same_size and turn <= ORIENTATION_TOLERANCE and spacing <= PIXEL_SPACING_TOLERANCE_MM)


def _stacks_of_group(
    group: Sequence[Slice], limits: SelectionLimits, same_pixels: SamePixels
) -> list[Stack | Refusal]:
    fault = _orientation_fault(group[0])
    if fault:
        return [fault]
    parts = _without_duplicates(group, same_pixels)
    if isinstance(parts, Refusal):
        return [parts]
    return [_stack(part, limits) for part in parts]


def _orientation_fault(piece: Slice) -> Refusal | None:
    plane = _plane(piece)
    row, column = np.asarray(plane.along_row), np.asarray(plane.along_column)
    faults = (float(row @ row) ** 0.5 - 1, float(column @ column) ** 0.5 - 1, float(row @ column))
    if max(map(abs, faults)) <= UNIT_TOLERANCE:
        return None
    text = f"Image {piece.name} has orientation vectors that are not of unit length or not at right angles."
    return Refusal(Code.BAD_ORIENTATION, text)


def _positions_mm(slices: Sequence[Slice]) -> NDArray[np.float64]:
    """Distance of each slice from the first one's plane along its normal; mm."""
    plane = _plane(slices[0])
    return np.array([plane.distance_mm(_plane(s).origin_lps_mm) for s in slices])


def _along_normal(slices: Sequence[Slice]) -> list[Slice]:
    order = np.argsort(_positions_mm(slices), kind="stable")
    return [slices[i] for i in order]


def _sharing_position(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Part slices into groups of one position each, in order along the normal."""
    ordered = _along_normal(slices)
    steps = np.diff(_positions_mm(ordered))
    starts = [0, *(i + 1 for i, step in enumerate(steps) if abs(step) >= SAME_POSITION_MM), len(ordered)]
    return [ordered[a:b] for a, b in pairwise(starts)]


def _without_duplicates(group: Sequence[Slice], same_pixels: SamePixels) -> list[list[Slice]] | Refusal:
    """Leave one image at each position: drop repeats, else part the group by acquisition, kernel or time."""
    places = _sharing_position(group)
    if max(map(len, places)) == 1:
        return [[place[0] for place in places]]
    if all(same_pixels(place[0], other) for place in places for other in place[1:]):
        return [[place[0] for place in places]]
    for key in ("acquisition", "kernel", "moment"):
        parts: dict[str, list[Slice]] = defaultdict(list)
        for piece in group:
            parts[getattr(piece, key)].append(piece)
        if 1 < len(parts) <= min(MAX_STACKS, len(group) // 2) and all(
            max(map(len, _sharing_position(part))) == 1 for part in parts.values()
        ):
            return [_along_normal(part) for part in parts.values()]
    crowded = max(places, key=len)
    text = (
        f"{len(crowded)} different images share one position (first: {crowded[0].name}) and nothing tells apart "
        "which belong together."
    )
    return Refusal(Code.DUPLICATE_POSITIONS, text)


def _stack(ordered: Sequence[Slice], limits: SelectionLimits) -> Stack | Refusal:
    """Lay slices of one shape, ordered along their normal, one at each position, onto a grid."""
    if len(ordered) < max(2, min(FEWEST_SLICES, limits.min_slices)):
        count = "1 slice" if len(ordered) == 1 else f"{len(ordered)} slices"
        text = f"Only {count}; at least {limits.min_slices} are needed. Send the whole axial series."
        return Refusal(Code.TOO_FEW_SLICES, text)
    positions = _positions_mm(ordered)
    tilt_deg, offsets_px = _sideways(ordered, positions)
    if tilt_deg > limits.max_tilt_deg:
        text = (
            f"The gantry tilt of {tilt_deg:.1f} degrees is beyond the {limits.max_tilt_deg:g} that are corrected."
        )
        return Refusal(Code.TILT_TOO_LARGE, text)
    indices = _z_indices(positions, limits)
    if isinstance(indices, Refusal):
        return indices
    notices: list[Notice] = []
    if tilt_deg > limits.ignore_tilt_deg:
        notices.append(Notice(Code.TILT_CORRECTED, f"Gantry tilt of {tilt_deg:.1f} degrees was corrected."))
    else:
        offsets_px = np.rint(offsets_px)
    grid = _grid(ordered[0], positions, indices[-1] + 1, offsets_px)
    if isinstance(grid, Refusal):
        return grid
    spacing_mm = grid.spacing_zyx_mm[0]
    given = [s.thickness_mm for s in ordered if s.thickness_mm is not None]
    thickness_mm = float(np.median(given)) if given else spacing_mm
    notices += _filled_notice(len(indices), indices[-1] + 1) + _gap_notice(spacing_mm, thickness_mm)
    starts = offsets_px - np.floor(offsets_px.min(axis=0))
    return Stack(
        slices=tuple(ordered),
        z_indices=indices,
        shifts_px=tuple((float(r), float(c)) for r, c in starts),
        grid=grid,
        spacing_mm=spacing_mm,
        thickness_mm=thickness_mm,
        tilt_deg=tilt_deg,
        notices=tuple(notices),
    )


def _sideways(ordered: Sequence[Slice], positions: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Tilt in degrees, and how far each slice lies beside the first one: ``(row, column)`` in pixels."""
    offsets = np.array([_plane(ordered[0]).lps_to_pixel(_plane(s).origin_lps_mm)[::-1] for s in ordered])
    plane = _plane(ordered[0])
    across = math.hypot(offsets[-1, 0] * plane.row_spacing_mm, offsets[-1, 1] * plane.column_spacing_mm)
    return math.degrees(math.atan2(across, float(positions[-1] - positions[0]))), offsets


def _z_indices(positions: NDArray[np.float64], limits: SelectionLimits) -> tuple[int, ...] | Refusal:
    """Count steps of the usual spacing: slice indices with room for what is missing."""
    steps = np.diff(positions)
    usual = float(np.median(steps))
    tolerance = max(SPACING_TOLERANCE * usual, SPACING_TOLERANCE_MM)
    counts = np.maximum(np.rint(steps / usual), 1).astype(int)
    off_grid = np.abs(steps - counts * usual)
    indices = np.concatenate([[0], np.cumsum(counts)])
    even = positions[0] + indices * (positions[-1] - positions[0]) / indices[-1]
    if off_grid.max() > tolerance or np.abs(positions - even).max() > DRIFT * usual:
        text = f"Distance between slices varies from {steps.min():.2f} to {steps.max():.2f} mm."
        return Refusal(Code.IRREGULAR_SPACING, text)
    missing = int((counts - 1).sum())
    if missing > limits.max_filled_slices:
        at = int(np.argmax(counts))
        text = (
            f"{missing} slices are missing, {counts[at] - 1} of them between positions {positions[at]:.2f} and "
            f"{positions[at + 1]:.2f} mm along the stack; send them."
        )
        return Refusal(Code.MISSING_SLICES, text)
    if indices[-1] + 1 > limits.max_slices:
        return Refusal(Code.TOO_LARGE, f"{indices[-1] + 1} slices in one volume; the limit is {limits.max_slices}.")
    return tuple(int(i) for i in indices)


def _grid(
    first: Slice, positions: NDArray[np.float64], count: int, offsets_px: NDArray[np.float64]
) -> Grid | Refusal:
    """The grid that holds every slice, wherever it lies sideways."""
    plane = _plane(first)
    low, high = np.floor(offsets_px.min(axis=0)), np.ceil(offsets_px.max(axis=0))
    rows, columns = plane.rows + int(high[0] - low[0]), plane.columns + int(high[1] - low[1])
    if rows > 2 * plane.rows or columns > 2 * plane.columns:
        text = f"Slices lie up to {int((high - low).max())} pixels beside each other and cannot form one volume."
        return Refusal(Code.MIXED_GEOMETRY, text)
    if count * rows * columns * 2 > MAX_BYTES:
        return Refusal(Code.TOO_LARGE, f"A volume of {count} x {rows} x {columns} voxels is above the size limit.")
    x, y, z = plane.pixel_to_lps(float(low[1]), float(low[0]))
    nx, ny, nz = plane.normal
    return Grid(
        shape_zyx=(count, rows, columns),
        spacing_zyx_mm=(
            float(positions[-1] - positions[0]) / (count - 1),
            plane.row_spacing_mm,
            plane.column_spacing_mm,
        ),
        origin_lps_mm=(float(x), float(y), float(z)),
        axes_zyx=((float(nx), float(ny), float(nz)), plane.along_column, plane.along_row),
    )


def _filled_notice(received: int, needed: int) -> list[Notice]:
    filled = needed - received
    if not filled:
        return []
    text = f"{filled} missing {'slice was' if filled == 1 else 'slices were'} filled in from the neighbours."
    return [Notice(Code.SLICES_INTERPOLATED, text)]


def _gap_notice(spacing_mm: float, thickness_mm: float) -> list[Notice]:
    if spacing_mm <= GAP_RATIO * thickness_mm:
        return []
    text = f"There are unscanned gaps between slices: {thickness_mm:.2f} mm thick, {spacing_mm:.2f} mm apart."
    return [Notice(Code.SAMPLING_GAP, text)]


def build(
    stack: Stack, read_pixels: ReadPixels, study_instance_uid: str, series_instance_uid: str
) -> Volume | Refusal:
    """Fill the planned grid with Hounsfield units.

    Parameters
    ----------
    stack
        One of :func:`plan`.
    read_pixels
        Decodes slices of one file, in the order given.
    study_instance_uid, series_instance_uid
        Carried into the volume.

    Returns
    -------
    Volume or Refusal
        ``HU_IMPLAUSIBLE``, or the first refusal of ``read_pixels``.
    """
    hu = np.full(stack.grid.shape_zyx, AIR_HU, np.int16)
    guessed = _fill(hu, stack, read_pixels)
    if isinstance(guessed, Refusal):
        return guessed
    for z in stack.missing:
        _interpolate(hu, z, stack.z_indices)
    fault = implausible(hu)
    if fault:
        return fault
    unfitting = notice_of(hu, stack.grid.spacing_zyx_mm[1])
    hu.flags.writeable = False
    return Volume(
        hu=hu,
        grid=stack.grid,
        study_instance_uid=study_instance_uid,
        series_instance_uid=series_instance_uid,
        slices=tuple(
            SliceReference(s.sop_class_uid, s.sop_instance_uid, s.frame_number, _plane(s)) for s in stack.slices
        ),
        received=received_geometry(stack),
        filled_slices=stack.missing,
        notices=stack.notices + unfitting + ((_guess_notice(guessed),) if guessed else ()),
    )


def received_geometry(stack: Stack) -> ReceivedGeometry:
    """The series as received: without what was filled in, and without the margin of a tilt correction."""
    plane, count = _plane(stack.slices[0]), len(stack.slices)
    spacing = (stack.spacing_mm, plane.row_spacing_mm, plane.column_spacing_mm)
    extent = (count * spacing[0], plane.rows * spacing[1], plane.columns * spacing[2])
    return ReceivedGeometry(count, spacing, extent)


def _guess_notice(count: int) -> Notice:
    text = f"Pixels outside the scan field were recognised by their value alone in {count} images."
    return Notice(Code.PADDING_GUESSED, text)


def _fill(hu: NDArray[np.int16], stack: Stack, read_pixels: ReadPixels) -> int | Refusal:
    """Decode every slice into its place, file by file; the number of slices whose padding was guessed."""
    guessed = 0
    places = list(zip(stack.slices, stack.z_indices, stack.shifts_px, strict=True))
    places.sort(key=lambda p: (str(p[0].path), p[0].frame_number or 0))
    for _, of_file in groupby(places, key=lambda p: p[0].path):
        group = list(of_file)
        for (_, z, shift), pixels in zip(group, read_pixels([p[0] for p in group]), strict=True):
            if isinstance(pixels, Refusal):
                return pixels
            _place(hu[z], pixels.hu, shift)
            guessed += pixels.padding_guessed
    return guessed


def _place(target: NDArray[np.int16], image: NDArray[np.int16], shift_px: tuple[float, float]) -> None:
    """Copy an image to its place; between pixels by linear interpolation, air around it."""
    row, column = (math.floor(s) for s in shift_px)
    rows, columns = image.shape
    target[row : row + rows, column : column + columns] = image
    rest = shift_px[0] - row, shift_px[1] - column
    if max(rest) > 0:
        moved = ndimage.shift(target.astype(np.float32), rest, order=1, mode="constant", cval=AIR_HU)
        target[:] = np.rint(moved)


def _interpolate(hu: NDArray[np.int16], z: int, known: Sequence[int]) -> None:
    below, above = max(k for k in known if k < z), min(k for k in known if k > z)
    weight = np.float32((z - below) / (above - below))
    hu[z] = np.rint(hu[below] * (1 - weight) + hu[above] * weight)


def implausible(hu: NDArray[np.int16]) -> Refusal | None:
    """Refuse values that cannot be a CT of the body: no air, or no soft tissue.

    Parameters
    ----------
    hu
        Hounsfield units, shape (z, y, x).
    """
    sample = hu[::SANITY_STRIDE, ::SANITY_STRIDE, ::SANITY_STRIDE]
    low = float(np.percentile(sample, 5))
    tissue = float(((sample >= TISSUE_HU[0]) & (sample <= TISSUE_HU[1])).mean())
    if low < AIR_BELOW_HU and tissue >= TISSUE_PART:
        return None
    text = (
        f"The grey values do not look like a CT of the body: 5th percentile {low:.0f} HU, "
        f"{100 * tissue:.1f} % between {TISSUE_HU[0]} and {TISSUE_HU[1]} HU."
    )
    return Refusal(Code.HU_IMPLAUSIBLE, text)

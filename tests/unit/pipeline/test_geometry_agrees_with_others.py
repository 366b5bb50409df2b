"""The one place that converts agrees with SimpleITK and highdicom, however the patient lies."""

from __future__ import annotations

import highdicom.spatial as hd
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.domain.geometry import Grid, SlicePlane, nearest_plane

NAMED = {
    "head first supine": ((1, 0, 0), (0, 1, 0)),
    "head first prone": ((-1, 0, 0), (0, -1, 0)),
    "feet first supine": ((-1, 0, 0), (0, 1, 0)),
    "feet first prone": ((1, 0, 0), (0, -1, 0)),
    "left decubitus": ((0, 1, 0), (-1, 0, 0)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "rows upside down": ((1, 0, 0), (0, 0, 1)),
}


def turned(angles):
    a, b, c = angles
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return rz @ ry @ rx


angles = st.tuples(*[st.floats(-3.1, 3.1)] * 3)
positions = st.tuples(*[st.floats(-800, 800)] * 3)
spacings = st.tuples(*[st.floats(0.3, 8)] * 3)
indices = st.tuples(*[st.floats(-50, 600)] * 3)


def vector(values):
    x, y, z = (float(v) for v in values)
    return x, y, z


def grid_and_image(axes, spacing, origin):
    """A Grid, and the SimpleITK image that lies in the same place; ``axes`` has the x, y, z axis as columns."""
    image = SimpleITK.Image(4, 3, 2, SimpleITK.sitkInt16)
    image.SetDirection(axes.ravel().tolist())
    image.SetSpacing(spacing[::-1])
    image.SetOrigin(origin)
    return Grid((2, 3, 4), spacing, origin, (vector(axes[:, 2]), vector(axes[:, 1]), vector(axes[:, 0]))), image


@settings(max_examples=60, deadline=None)
@given(angles, spacings, positions, indices)
def test_grids_agree_with_simpleitk_at_any_angle(turn, spacing, origin, index):
    grid, image = grid_and_image(turned(turn), spacing, origin)
    theirs = image.TransformContinuousIndexToPhysicalPoint(index[::-1])
    assert grid.index_to_lps(index) == pytest.approx(theirs, abs=1e-6)
    assert grid.lps_to_index(theirs) == pytest.approx(index, abs=1e-6)


@pytest.mark.parametrize("name", NAMED)
def test_grids_agree_with_simpleitk_for_every_patient_position(name):
    row, column = map(np.array, NAMED[name])
    for normal in (np.cross(row, column), -np.cross(row, column)):
        grid, image = grid_and_image(
            np.stack([row, column, normal], axis=1).astype(float), (2.5, 0.7, 0.6), (1, 2, 3)
        )
        assert grid.index_to_lps((3, 5, 7)) == pytest.approx(image.TransformIndexToPhysicalPoint((7, 5, 3)))


def plane_of(row, column, spacing, origin):
    return SlicePlane(vector(origin), vector(row), vector(column), spacing[0], spacing[1], 512, 512)


def agrees_with_highdicom(row, column, spacing, origin, pixel):
    plane = plane_of(row, column, spacing, origin)
    geometry = {
        "image_position": list(origin),
        "image_orientation": [*map(float, row), *map(float, column)],
        "pixel_spacing": list(spacing[:2]),
    }
    theirs = hd.PixelToReferenceTransformer(**geometry)(np.array([pixel]))[0]
    assert plane.pixel_to_lps(*pixel) == pytest.approx(theirs, abs=1e-6)
    aside = theirs + plane.normal * 1.7
    back = hd.ReferenceToPixelTransformer(**geometry, round_output=False)(aside[None])[0]
    assert plane.lps_to_pixel(aside) == pytest.approx(back[:2], abs=1e-6)
    assert plane.distance_mm(aside) == pytest.approx(1.7, abs=1e-6)


@pytest.mark.parametrize("name", NAMED)
def test_planes_agree_with_highdicom_for_every_patient_position(name):
    agrees_with_highdicom(*NAMED[name], (0.8, 0.5, 1), (-120.5, 30.25, -400.0), (37, 411))


@settings(max_examples=60, deadline=None)
@given(angles, spacings, positions, st.tuples(st.integers(-20, 600), st.integers(-20, 600)))
def test_planes_agree_with_highdicom_at_any_angle(turn, spacing, origin, pixel):
    axes = turned(turn)
    agrees_with_highdicom(axes[:, 0], axes[:, 1], spacing, origin, pixel)


@settings(max_examples=40, deadline=None)
@given(angles, spacings, positions, st.integers(0, 29), st.floats(-0.45, 0.45))
def test_the_nearest_plane_is_the_one_whose_slice_it_is(turn, spacing, origin, k, off):
    axes = turned(turn)
    planes = [
        plane_of(axes[:, 0], axes[:, 1], spacing, np.asarray(origin) + axes[:, 2] * spacing[2] * n)
        for n in range(30)
    ]
    position = planes[k].pixel_to_lps(100, 200) + axes[:, 2] * off * spacing[2]
    assert nearest_plane(planes, position) == k


@settings(max_examples=40, deadline=None)
@given(angles, spacings, positions, st.floats(0.5, 2.0))
def test_resampled_and_cropped_grids_keep_their_place(turn, spacing, origin, step):
    axes = turned(turn)
    grid = Grid((20, 30, 40), spacing, origin, (vector(axes[:, 2]), vector(axes[:, 1]), vector(axes[:, 0])))
    finer = grid.resampled((step, step, step))
    assert finer.index_to_lps((0, 0, 0)) == pytest.approx(origin, abs=1e-6)
    last = grid.lps_to_index(finer.index_to_lps(np.subtract(finer.shape_zyx, 1)))
    assert (last <= np.subtract(grid.shape_zyx, 1) + 1e-3).all()
    assert grid.cropped((2, 3, 4), (5, 5, 5)).index_to_lps((1, 1, 1)) == pytest.approx(
        grid.index_to_lps((3, 4, 5)), abs=1e-6
    )

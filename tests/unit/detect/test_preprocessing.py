"""Resampling to the networks' grid, and places in patient space (T9)."""

import numpy as np
import pytest
import torch

from pipeline.detect.resample import PREPROCESSING, interpolate, prepare
from pipeline.domain.geometry import Grid
from pipeline.lungs import LungMask

TURN = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
AXES = {
    "plain": ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
    "feet first": ((0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (-1.0, 0.0, 0.0)),
    "flipped": ((0.0, 0.0, 1.0), (0.0, -1.0, 0.0), (-1.0, 0.0, 0.0)),
    "oblique": tuple(tuple(float(v) for v in row) for row in TURN),
}


def everywhere(shape: tuple[int, int, int]) -> LungMask:
    return LungMask(np.ones(shape, bool), np.ones(shape, bool), (1, 1, 1), shape, 5.0)


@pytest.mark.parametrize("name", AXES)
def test_a_blob_keeps_its_place_in_patient_space(name):
    grid = Grid((30, 60, 70), (2.0, 0.9, 0.8), (-31.0, 12.5, 400.0), AXES[name])
    index = np.array([11.3, 37.4, 20.2])
    sigma = np.array([2.0, 4.0, 4.0])
    offsets = (np.indices(grid.shape_zyx).transpose(1, 2, 3, 0) - index) / sigma
    hu = (-1000 + 1400 * np.exp(-(offsets**2).sum(-1) / 2)).astype(np.int16)
    scan = prepare(hu, grid, everywhere(grid.shape_zyx))
    weight = np.clip(scan.hu.astype(float) + 995, 0, None)
    found = (np.indices(scan.hu.shape).reshape(3, -1) * weight.ravel()).sum(1) / weight.sum()
    assert np.abs(scan.grid.index_to_lps(found) - grid.index_to_lps(index)).max() < 0.05


def test_new_voxel_zero_lies_on_the_centre_of_old_voxel_zero():
    hu = np.random.default_rng(0).integers(-1000, 400, (9, 20, 21)).astype(np.int16)
    grid = Grid(hu.shape, (2.5, 1.4, 1.4), (1.0, 2.0, 3.0))
    scan = prepare(hu, grid, everywhere(grid.shape_zyx))
    assert scan.grid.origin_lps_mm == (1.0, 2.0, 3.0)
    assert scan.grid.spacing_zyx_mm == PREPROCESSING.spacing_zyx_mm
    assert scan.hu.shape == (17, 39, 41)
    assert np.array_equal(scan.hu[::2, ::2, ::2], hu)
    middle = (hu[0, 0, 0].astype(float) + hu[1, 0, 0]) / 2
    assert abs(scan.hu[1, 0, 0] - middle) <= 0.5


def test_the_box_around_the_search_region_is_the_same_piece_of_the_whole():
    hu = np.random.default_rng(1).integers(-1000, 400, (60, 160, 160)).astype(np.int16)
    grid = Grid(hu.shape, (1.0, 0.8, 0.8), (-10.0, -20.0, -30.0))
    search = np.zeros((30, 40, 40), bool)
    search[18:20, 20:24, 22:23] = True
    lungs = LungMask(search, search, (2, 4, 4), hu.shape, 5.0)
    box, whole = prepare(hu, grid, lungs), prepare(hu, grid, everywhere(grid.shape_zyx))
    first = np.rint(whole.grid.lps_to_index(box.grid.origin_lps_mm)).astype(int)
    assert first.tolist() == [28 - 12, 91 - 32, 100 - 32]
    piece = whole.hu[tuple(slice(a, a + n) for a, n in zip(first, box.hu.shape, strict=True))]
    assert np.array_equal(box.hu, piece)


def test_the_search_region_is_looked_up_where_the_volume_has_it():
    grid = Grid((60, 160, 160), (1.0, 0.8, 0.8), (-10.0, -20.0, -30.0))
    search = np.zeros((30, 40, 40), bool)
    search[18:20, 20:24, 22:23] = True
    scan = prepare(
        np.zeros(grid.shape_zyx, np.int16), grid, LungMask(search, search, (2, 4, 4), grid.shape_zyx, 5.0)
    )
    inside, outside = grid.index_to_lps([38, 90, 90]), grid.index_to_lps([38, 90, 84])
    for position, expected in ((inside, True), (outside, False)):
        axes = (np.array([v]) for v in scan.grid.lps_to_index(position))
        assert scan.search_at(*axes).item() is expected
    assert not scan.search_at(np.array([0.0]), np.array([0.0]), np.array([-1e4])).any()


def test_interpolation_equals_torch_on_a_whole_volume():
    hu = np.random.default_rng(2).integers(-1000, 400, (20, 24, 28)).astype(np.int16)
    ours = interpolate(hu, [(19 / 30, 0.0), (23 / 40, 0.0), (27 / 50, 0.0)], (31, 41, 51))
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(hu).float()[None, None], (31, 41, 51), mode="trilinear", align_corners=True
    )
    assert np.abs(ours - theirs[0, 0].numpy()).max() <= 0.51


def test_a_read_only_volume_is_resampled_without_a_warning():
    hu = np.zeros((4, 8, 8), np.int16)
    hu.setflags(write=False)
    assert prepare(hu, Grid(hu.shape, (1.25, 0.7, 0.7), (0.0, 0.0, 0.0)), everywhere(hu.shape)).hu.shape == hu.shape


def test_hounsfield_units_map_to_the_window():
    hu = torch.tensor([-2000, -1000, -300, 400, 3071], dtype=torch.int16)
    assert PREPROCESSING.normalise(hu).tolist() == pytest.approx([-0.25, -0.25, 0.25, 0.75, 0.75])
    assert hu.tolist() == [-2000, -1000, -300, 400, 3071]
    floats = hu.float()
    PREPROCESSING.normalise(floats)
    assert floats.tolist() == hu.tolist()

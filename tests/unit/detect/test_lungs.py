"""Where nodules are searched: generous at the pleura, or a sentence why not."""

import csv
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from scipy import ndimage

from pipeline.domain.geometry import Grid
from pipeline.domain.limits import SelectionLimits
from pipeline.domain.outcome import Code, Refusal
from pipeline.lungs import CLOSING_MM, MARGIN_MM, LungMask, _block_means, _closed, _widened, find_lungs
from tests.builders import ChestSeries
from tests.unit.detect.scans import SMALL_CHEST, chest

SPACING = (3.0, 2.5, 2.5)
DATA = os.environ.get("NODULE_NODE_TEST_DATA")


def searched(mask: LungMask, *index: float) -> bool:
    return bool(mask.search_at(*(np.array([float(v)]) for v in index)).item())


def test_both_lungs_are_searched_and_outside_air_is_not():
    mask = find_lungs(chest(), SPACING, SMALL_CHEST)
    assert isinstance(mask, LungMask)
    assert mask.volume_l == pytest.approx(0.80, abs=0.05)
    assert mask.notices == ()
    assert searched(mask, 16, 48, 30)
    assert searched(mask, 16, 48, 66)
    assert not searched(mask, 16, 2, 2)
    assert not searched(mask, 16, 48, 9)


def spots(seed: int):
    """A few grown spots, at the edge and away from it, and the size of their cells."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((24, 30, 27), bool)
    for _ in range(4):
        mask[tuple(rng.integers(0, size) for size in mask.shape)] = True
    return ndimage.binary_dilation(mask, iterations=int(rng.integers(1, 4))), rng.choice([2.5, 2.8, 3.0], 3)


@pytest.mark.parametrize("seed", range(6))
def test_closing_and_widening_near_the_mask_alone_give_what_the_whole_volume_gives(seed):
    mask, cell_mm = spots(seed)
    far = ndimage.distance_transform_edt(~mask, sampling=cell_mm) <= MARGIN_MM
    assert np.array_equal(_widened(mask, cell_mm), far)
    padded = np.pad(mask, 12, mode="edge")
    grown = ndimage.distance_transform_edt(~padded, sampling=cell_mm) <= CLOSING_MM
    closed = ndimage.distance_transform_edt(grown, sampling=cell_mm) > CLOSING_MM
    assert np.array_equal(_closed(mask, cell_mm), closed[12:-12, 12:-12, 12:-12] | mask)


def test_block_means_repeat_the_last_voxel_of_an_incomplete_block():
    hu = np.arange(5 * 4 * 7, dtype=np.int16).reshape(5, 4, 7)
    whole = np.pad(hu, ((0, 1), (0, 2), (0, 0)), mode="edge")
    means = whole.astype(int).reshape(3, 2, 6, 7).sum(1) // 2
    means = means.reshape(3, 2, 3, 7).sum(2) // 3
    assert np.array_equal(_block_means(hu, (2, 3, 1)), means)


def test_without_any_air_a_limit_of_nothing_has_everything_searched():
    solid = np.zeros((20, 40, 40), np.int16)
    mask = find_lungs(solid, SPACING, replace(SMALL_CHEST, min_lung_l=0.0))
    assert not isinstance(mask, Refusal)
    assert mask.search.all()
    assert not mask.lungs.any()


def test_eight_millimetres_beyond_the_pleura_are_searched():
    mask = find_lungs(chest(), SPACING, SMALL_CHEST)
    edge = int(np.flatnonzero(mask.lungs[16, 48 // mask.strides_zyx[1]])[0])
    assert searched(mask, 16, 48, edge - 3)
    assert not searched(mask, 16, 48, edge - 5)


def test_a_nodule_at_the_pleura_lies_inside():
    mask = find_lungs(chest(nodules=[(16, 48, 17.5, 12.0)]), SPACING, SMALL_CHEST)
    assert searched(mask, 16, 48, 17.5)


def test_the_box_holds_the_search_region():
    mask = find_lungs(chest(), SPACING, SMALL_CHEST)
    (z0, y0, x0), (z1, y1, x1) = mask.bounds()
    assert mask.search[z0:z1, y0:y1, x0:x1].sum() == mask.search.sum()
    assert z0 >= 0
    assert z1 <= 32
    assert 5 < x0 < 18
    assert 18 < y0 < 24
    assert y1 < 78 < x1 < 92


def test_lungs_cut_by_the_volumes_ends_are_found_and_said():
    mask = find_lungs(chest(taper=False), SPACING, SMALL_CHEST)
    assert isinstance(mask, LungMask)
    assert searched(mask, 0, 48, 30)
    assert searched(mask, 31, 48, 66)
    assert [(n.code, n.text) for n in mask.notices] == [
        (Code.LUNG_CUT, "The lungs reach the first and the last slice; parts of them are not seen.")
    ]


@pytest.mark.parametrize(("axis", "cut"), [(2, 20), (1, 30)])
@pytest.mark.parametrize("flipped", [False, True])
def test_lungs_cut_by_the_image_edge_are_searched_and_said(axis, cut, flipped):
    whole = chest()
    hu = np.delete(whole, np.s_[:cut], axis)
    index = np.array([16, 48, 30]) - cut * np.eye(3, dtype=int)[axis]
    if flipped:
        hu = np.flip(hu, axis)
        index[axis] = hu.shape[axis] - 1 - index[axis]
    mask = find_lungs(hu, SPACING, SMALL_CHEST)
    assert isinstance(mask, LungMask)
    assert searched(mask, *index)
    assert [(n.code, n.text) for n in mask.notices] == [
        (Code.LUNG_CUT, "The lungs reach the edge of the image; parts of them are not seen.")
    ]


def test_air_between_the_arms_and_the_image_edge_is_no_lung():
    hu = chest()
    hu[:, 20:26, :20] = hu[:, 70:76, :20] = 40
    mask = find_lungs(hu, SPACING, SMALL_CHEST)
    assert isinstance(mask, LungMask)
    assert mask.notices == ()
    assert not searched(mask, 16, 48, 2)


def test_a_trachea_open_at_the_top_is_no_cut_lung():
    hu = chest()
    hu[16:, 44:50, 46:52] = -990
    mask = find_lungs(hu, SPACING, SMALL_CHEST)
    assert isinstance(mask, LungMask)
    assert mask.notices == ()


def test_a_hollow_table_below_the_patient_is_not_searched():
    hu = chest()
    hu[:, 86:93, 10:86] = 100
    hu[:, 87:92, 11:85] = -950
    mask = find_lungs(hu, SPACING, SMALL_CHEST)
    assert isinstance(mask, LungMask)
    assert not searched(mask, 16, 89, 48)
    assert mask.volume_l == pytest.approx(0.80, abs=0.05)


def test_too_little_lung_is_refused_in_one_sentence():
    refusal = find_lungs(chest(), SPACING, SelectionLimits())
    assert refusal == Refusal(
        Code.NO_LUNG_FOUND,
        "The air inside the body measures 0.8 l, expected at least 1.5 l; "
        "check that this is a chest CT in Hounsfield units.",
    )


@pytest.mark.parametrize("value", [-1024, 40, 3071])
def test_a_volume_without_any_structure_is_refused(value):
    refusal = find_lungs(np.full((40, 64, 64), value, np.int16), SPACING, SelectionLimits())
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.NO_LUNG_FOUND


def test_an_unbelievable_mask_is_not_used_and_the_body_is_searched():
    mask = find_lungs(chest(), SPACING, SelectionLimits(min_lung_l=0.1, max_lung_l=0.4))
    assert isinstance(mask, LungMask)
    assert [(n.code, n.text) for n in mask.notices] == [
        (Code.LUNG_MASK_UNUSED, "The lung mask measures 0.8 l, more than 0.4 l; the whole body was searched.")
    ]
    assert searched(mask, 16, 48, 48)
    assert searched(mask, 16, 48, 9)
    assert not searched(mask, 16, 1, 1)


def test_the_builders_chest_has_lungs():
    series = ChestSeries().datasets()
    hu = np.stack([d.pixel_array.astype(np.int32) - 1024 for d in series]).astype(np.int16)
    mask = find_lungs(hu, (2.5, 1.2, 1.2), SelectionLimits())
    assert isinstance(mask, LungMask)
    assert 1.5 < mask.volume_l < 12


def real_series(folder: Path) -> tuple[np.ndarray, Grid]:
    slices = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
    slices.sort(key=lambda ds: float(ds.ImagePositionPatient[2]))
    hu = np.stack([np.clip(ds.pixel_array.astype(np.int32) - 1024, -1024, 3071) for ds in slices]).astype(np.int16)
    step = float(slices[1].ImagePositionPatient[2]) - float(slices[0].ImagePositionPatient[2])
    pixel = [float(v) for v in slices[0].PixelSpacing]
    origin = tuple(float(v) for v in slices[0].ImagePositionPatient)
    return hu, Grid(hu.shape, (step, pixel[0], pixel[1]), origin)


@pytest.mark.skipif(DATA is None, reason="NODULE_NODE_TEST_DATA names no folder with real series")
@pytest.mark.parametrize("number", ["0003", "0004", "0006", "0007", "0008"])
def test_every_nodule_and_every_excluded_finding_of_the_real_series_is_searched(number):
    folder = Path(str(DATA)) / "ct" / "LIDC-IDRI"
    hu, grid = real_series(folder / f"LIDC-IDRI-{number}")
    mask = find_lungs(hu, grid.spacing_zyx_mm, SelectionLimits())
    assert isinstance(mask, LungMask)
    assert mask.search.mean() < 0.3
    places = [
        (float(row["x"]), float(row["y"]), float(row["z"]))
        for table in ("nodules.csv", "excluded.csv")
        for row in csv.DictReader((folder / table).read_text().splitlines())
        if row["patient"].endswith(number)
    ]
    assert len(places) > 20
    assert [p for p in places if not searched(mask, *grid.lps_to_index(p))] == []

"""Crops show what their targets say: under flips, rotation and scale the nodule stands where the target puts it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from training.insertion import Look
from training.reduction import SIZE_MM, box_targets
from training.sampling import (
    SPACING,
    STRIDE,
    CandidateSampler,
    Crop,
    CropSampler,
    Mixture,
    PatchSampler,
    cut,
    dense_target,
    draw_turn,
)
from training.scans import TrainingScan

PLACE = np.array([30.0, 60.0, 45.0])


def scan(*, name: str = "patient", diameter: float = 9.0) -> TrainingScan:
    """A homogeneous lung with one bright ball, off the middle of every axis."""
    shape = (64, 110, 100)
    grid = [np.arange(n, dtype=np.float32) for n in shape]
    away = sum(
        (((g - p) * s) ** 2).reshape([-1 if a == k else 1 for a in range(3)])
        for k, (g, p, s) in enumerate(zip(grid, PLACE, SPACING, strict=True))
    )
    hu = np.where(np.sqrt(away) < diameter / 2, 40, -850).astype(np.int16)
    places = np.array([[20, 30, 30], [40, 80, 70]], np.int16)
    return TrainingScan(
        name=name,
        hu=hu,
        slice_distance_mm=2.5,
        look=Look((1.25, 0.6, 0.6), 15.0, (0.6, 0.7, 0.7)),
        nodules=np.array([[*PLACE, diameter]]),
        ignored=np.empty((0, 4)),
        mimics=np.array([[40.0, 80.0, 70.0]]),
        places=dict.fromkeys(("free", "pleura", "vessel", "any"), places),
    )


def bright_centre(hu: np.ndarray) -> np.ndarray:
    return np.array(ndimage.center_of_mass(np.clip((hu + 850) / 890, 0, 1) > 0.5))


@pytest.mark.parametrize("seed", range(12))
def test_a_turned_crop_shows_the_nodule_where_the_target_puts_it(seed: int):
    rng = np.random.default_rng(seed)
    turn = draw_turn(rng, PLACE, np.array([22.0, 40.0, 55.0]))
    seen = cut(scan().hu, turn, (48, 96, 96))
    np.testing.assert_allclose(bright_centre(seen), turn.to_crop(PLACE), atol=0.35)


def test_a_scaled_crop_shows_a_ball_of_the_scaled_diameter():
    for seed in range(6):
        turn = draw_turn(np.random.default_rng(seed), PLACE, np.array([24.0, 48.0, 48.0]))
        seen = cut(scan(diameter=14.0).hu, turn, (48, 96, 96))
        volume = float((seen > -405).sum() * np.prod(SPACING))
        diameter = (6 * volume / np.pi) ** (1 / 3)
        assert diameter == pytest.approx(14.0 * turn.scale, rel=0.04)


def test_crop_and_scan_indices_are_inverse_to_each_other():
    turn = draw_turn(np.random.default_rng(5), PLACE, np.array([10.0, 20.0, 30.0]))
    np.testing.assert_allclose(turn.to_crop(PLACE), [10.0, 20.0, 30.0], atol=1e-9)
    np.testing.assert_allclose(turn.to_scan(turn.to_crop([3.0, 4.0, 5.0])), [3.0, 4.0, 5.0], atol=1e-9)


def test_a_cell_with_its_offset_gives_back_centre_and_diameter():
    crop = Crop(np.zeros((48, 96, 96), np.float32), np.array([[21.3, 40.7, 55.1, 7.5]]), np.empty((0, 4)))
    heat, shape = dense_target(crop)
    cells = np.argwhere(heat == 1)
    assert len(cells) == 5
    for cell in cells:
        offset = shape[:3, *cell]
        np.testing.assert_allclose((cell + offset) * STRIDE, [21.3, 40.7, 55.1], atol=1e-4)
        assert np.exp(shape[3, *cell]) == pytest.approx(7.5, rel=1e-5)


def test_the_rest_of_a_nodule_and_findings_to_ignore_take_no_part():
    crop = Crop(
        np.zeros((48, 96, 96), np.float32),
        np.array([[20.3, 40.9, 41.3, 20.0]]),
        np.array([[30.0, 80.0, 80.0, 10.0]]),
    )
    heat, _ = dense_target(crop)
    assert (heat == 1).sum() == 9
    assert heat[15, 20, 20] == -1
    assert heat[10, 13, 10] == -1
    assert heat[23, 0, 0] == 0


def test_a_nodule_whose_centre_lies_outside_is_only_ignored():
    crop = Crop(np.zeros((48, 96, 96), np.float32), np.array([[-1.0, 40.0, 40.0, 12.0]]), np.empty((0, 4)))
    heat, _ = dense_target(crop)
    assert not (heat == 1).any()
    assert (heat == -1).any()


def test_crop_number_i_is_always_the_same_crop():
    scans = [scan(), scan(name="phantom-1")]
    first, second = (CropSampler(scans, (32, 64, 64), 3, Mixture()) for _ in range(2))
    for number in (0, 7, 8):
        a, b = first.crop(number), second.crop(number)
        np.testing.assert_array_equal(a.hu, b.hu)
        np.testing.assert_array_equal(a.nodules, b.nodules)
    assert not np.array_equal(first.crop(0).hu, first.crop(1).hu)


def test_simulated_nodules_appear_in_crops_of_a_real_scan():
    sampler = CropSampler([scan()], (32, 64, 64), 1, Mixture(real_nodules=0.0))
    crops = [sampler.crop(i) for i in range(12)]
    inserted = [row for crop in crops for row in crop.nodules]
    assert len(inserted) >= 6
    assert all(2.0 < row[3] < 36 for row in inserted)


def test_crops_are_cut_around_known_false_marks_of_a_real_scan():
    sampler = CropSampler([scan()], (32, 64, 64), 1, Mixture(real_nodules=0.0, real_mimics=1.0))
    alone = [crop for crop in (sampler.crop(i) for i in range(20)) if not len(crop.nodules)]
    assert len(alone) >= 5


def test_small_and_large_nodules_are_inserted_as_often_as_the_mixture_says():
    def drawn(mixture: Mixture) -> list[float]:
        healthy = replace(scan(), nodules=np.empty((0, 4)))
        sampler = CropSampler([healthy], (32, 64, 64), 1, mixture)
        return [row[3] for i in range(12) for row in sampler.crop(i).nodules]

    assert max(drawn(Mixture(real_nodules=0.0, small=1.0))) < 7.5
    assert np.median(drawn(Mixture(real_nodules=0.0, large=1.0))) > 8


def test_a_quarter_of_the_patches_of_the_paper_hold_a_nodule():
    sampler = PatchSampler([scan()], (10, 30, 30), 2)
    hu, labels = sampler.batch(0, 96)
    assert hu.shape == (96, 10, 30, 30)
    assert 10 <= labels.sum() <= 40
    np.testing.assert_array_equal(hu, sampler.batch(0, 96)[0])


def test_a_patch_around_a_candidate_knows_where_its_nodule_is():
    near = PLACE + np.array([1.0, 2.0, -2.0])
    candidates = {"patient": np.array([near, [40.0, 80.0, 70.0]])}
    batch = CandidateSampler([scan()], candidates, (24, 60, 60), 4).batch(0, 9)
    assert batch.labels.tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0]
    middle = (np.array([24, 60, 60]) - 1) / 2
    for hu, offset in zip(batch.hu[:3], batch.offsets_mm[:3], strict=True):
        np.testing.assert_allclose(bright_centre(hu), middle + offset / SPACING, atol=0.5)


def test_flips_negate_and_scale_multiplies_the_targets_of_equation_2():
    offsets = np.array([[3.0, -2.0, 1.0]])
    there, flipped = box_targets(offsets, np.array([8.0])), box_targets(-offsets, np.array([8.0]))
    np.testing.assert_allclose(flipped[:, :3], -there[:, :3])
    np.testing.assert_allclose(there[0, :3], 2 * offsets[0] / SIZE_MM, rtol=1e-6)
    larger = box_targets(offsets * 1.1, np.array([8.8]))
    np.testing.assert_allclose(larger[:, :3], there[:, :3] * 1.1, rtol=1e-5)
    assert float(larger[0, 3] - there[0, 3]) == pytest.approx(np.log(1.1), abs=1e-6)

"""Each row of the trial table: what makes other readers stretch or shear a volume must not pass unnoticed."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import numpy as np
import pytest
from pydicom import dcmwrite

from pipeline.assemble import Stack, build, plan
from pipeline.decision import _same_pixels
from pipeline.domain.outcome import Code, Refusal
from pipeline.domain.volume import Volume
from pipeline.pixels import read_pixels
from pipeline.reading import read_headers
from tests.builders import Sphere, uid_of


def write(datasets, folder):
    folder.mkdir(exist_ok=True)
    for k, dataset in enumerate(datasets):
        dcmwrite(folder / f"{k:03d}", dataset, enforce_file_format=True)
    return folder


def stacks(datasets, folder, limits):
    inventory = read_headers(sorted(write(datasets, folder).iterdir()))
    slices = [s for instances in inventory.series.values() for i in instances for s in i.slices]
    return plan(slices, limits, _same_pixels)


def volume(datasets, folder, limits):
    (stack,) = stacks(datasets, folder, limits)
    assert isinstance(stack, Stack), stack
    built = build(stack, read_pixels, "1.2", "1.3")
    assert isinstance(built, Volume), built
    return built


def codes(notices):
    return [n.code for n in notices]


def true_hu(dataset):
    stored = np.frombuffer(dataset.PixelData, "<i2").reshape(dataset.Rows, dataset.Columns)
    hu = np.rint(stored * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept))
    return np.clip(hu, -1024, 3071).astype(np.int16)


def test_an_even_series_comes_back_slice_for_slice(small_series, small_limits, tmp_path):
    datasets = small_series.datasets()
    made = volume(datasets, tmp_path, small_limits)
    assert np.array_equal(made.hu, [true_hu(d) for d in datasets])
    assert made.grid.spacing_zyx_mm == pytest.approx((2.0, 4.0, 4.0))
    assert made.grid.origin_lps_mm == pytest.approx(tuple(datasets[0].ImagePositionPatient))
    assert made.received.extent_zyx_mm == pytest.approx((28.0, 192.0, 256.0))
    assert [s.sop_instance_uid for s in made.slices] == [d.SOPInstanceUID for d in datasets]
    assert made.notices == ()
    assert not made.hu.flags.writeable


@pytest.mark.parametrize("missing", range(1, 13))
def test_each_single_missing_slice(small_series, small_limits, tmp_path, missing):
    datasets = small_series.datasets()
    lost = datasets.pop(missing)
    made = volume(datasets, tmp_path, small_limits)
    assert made.hu.shape[0] == 14
    assert made.filled_slices == (missing,)
    assert made.received.slices == 13
    assert made.notices[0].text == "1 missing slice was filled in from the neighbours."
    between = (true_hu(datasets[missing - 1]).astype(float) + true_hu(datasets[missing])) / 2
    assert np.abs(made.hu[missing] - between).max() <= 0.5
    assert made.grid.lps_to_index(lost.ImagePositionPatient) == pytest.approx((missing, 0, 0), abs=1e-6)


@pytest.mark.parametrize("missing", [(3, 4), (3, 9)])
def test_two_missing_slices_are_filled_and_said(small_series, small_limits, tmp_path, missing):
    datasets = [d for k, d in enumerate(small_series.datasets()) if k not in missing]
    made = volume(datasets, tmp_path, small_limits)
    assert made.filled_slices == missing
    assert codes(made.notices) == [Code.SLICES_INTERPOLATED]


@pytest.mark.parametrize("missing", [(3, 4, 5), (2, 5, 9)])
def test_three_missing_slices_are_refused_with_place_and_number(small_series, small_limits, tmp_path, missing):
    datasets = [d for k, d in enumerate(small_series.datasets()) if k not in missing]
    (refusal,) = stacks(datasets, tmp_path, small_limits)
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.MISSING_SLICES
    assert refusal.text.startswith("3 slices are missing")
    assert "mm along the stack" in refusal.text


def test_an_extra_slice_at_an_existing_position_is_dropped_when_it_is_the_same_image(
    small_series, small_limits, tmp_path
):
    datasets = small_series.datasets()
    twin = copy.deepcopy(datasets[5])
    twin.SOPInstanceUID = twin.file_meta.MediaStorageSOPInstanceUID = uid_of("twin")
    made = volume([*datasets, twin], tmp_path, small_limits)
    assert made.hu.shape[0] == 14
    assert codes(made.notices) == [Code.EXTRA_IMAGES_DROPPED]


def test_an_extra_slice_with_other_pixels_is_refused(small_series, small_limits, tmp_path):
    datasets = small_series.datasets()
    twin = copy.deepcopy(datasets[5])
    twin.SOPInstanceUID = twin.file_meta.MediaStorageSOPInstanceUID = uid_of("twin")
    twin.PixelData = datasets[6].PixelData
    (refusal,) = stacks([*datasets, twin], tmp_path, small_limits)
    assert refusal.code is Code.DUPLICATE_POSITIONS
    assert refusal.text.startswith("2 different images share one position")


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("AcquisitionNumber", (1, 2)),
        ("ConvolutionKernel", ("B30f", "B70f")),
        ("TemporalPositionIdentifier", (1, 2)),
    ],
)
def test_two_acquisitions_in_one_series_become_two_stacks(small_series, small_limits, tmp_path, keyword, values):
    first, second = small_series.datasets(), replace(small_series, seed=8).datasets()
    for k, (a, b) in enumerate(zip(first, second, strict=True)):
        b.SOPInstanceUID = b.file_meta.MediaStorageSOPInstanceUID = uid_of("second", k)
        setattr(a, keyword, values[0])
        setattr(b, keyword, values[1])
    found = stacks([*first, *second], tmp_path, small_limits)
    uids = [{s.sop_instance_uid for s in stack.slices} for stack in found]
    assert sorted(uids, key=sorted) == sorted(
        [{d.SOPInstanceUID for d in part} for part in (first, second)], key=sorted
    )
    assert [[n.text for n in stack.notices] for stack in found] == 2 * [
        ["14 of 28 images of the series were left out: scout, odd or repeated ones, or those of another volume."]
    ]


def test_a_localizer_inside_the_series_is_left_out(small_series, small_limits, tmp_path):
    datasets = small_series.datasets()
    scout = copy.deepcopy(datasets[0])
    scout.SOPInstanceUID = scout.file_meta.MediaStorageSOPInstanceUID = uid_of("scout")
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scout.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    made = volume([scout, *datasets], tmp_path, small_limits)
    assert np.array_equal(made.hu, [true_hu(d) for d in datasets])
    assert [n.text for n in made.notices] == [
        "1 of 15 images of the series were left out: scout, odd or repeated ones, or those of another volume."
    ]


def test_an_odd_orientation_inside_the_series_is_left_out_even_if_not_called_localizer(
    small_series, small_limits, tmp_path
):
    datasets = small_series.datasets()
    odd = copy.deepcopy(datasets[0])
    odd.SOPInstanceUID = odd.file_meta.MediaStorageSOPInstanceUID = uid_of("odd")
    odd.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    made = volume([odd, *datasets], tmp_path, small_limits)
    assert codes(made.notices) == [Code.EXTRA_IMAGES_DROPPED]


def test_a_slice_of_another_matrix_size_is_left_out_and_its_place_filled(small_series, small_limits, tmp_path):
    datasets = small_series.datasets()
    datasets[6] = replace(small_series, rows=32).datasets()[6]
    made = volume(datasets, tmp_path, small_limits)
    assert made.filled_slices == (6,)
    assert codes(made.notices) == [Code.EXTRA_IMAGES_DROPPED, Code.SLICES_INTERPOLATED]


def test_halves_of_different_pixel_spacing_cannot_form_one_volume(small_series, small_limits, tmp_path):
    datasets = small_series.datasets()
    for dataset in datasets[::2]:
        dataset.PixelSpacing = [3.0, 3.0]
    (refusal,) = stacks(datasets, tmp_path, small_limits)
    assert refusal.code is Code.MIXED_GEOMETRY
    assert refusal.text.startswith("14 slices have 2 different sizes")


@pytest.mark.parametrize("angle_deg", [-25, -10, 10, 25])
def test_tilt_roundtrip_0_5mm(small_series, small_limits, tmp_path, angle_deg):
    tilt = np.radians(angle_deg)
    dot = (20.3, -8.2, 3.1)
    series = replace(
        small_series,
        slices=24,
        rows=160,
        pixel_mm=1.0,
        orientation=(1, 0, 0, 0, float(np.cos(tilt)), float(np.sin(tilt))),
        slice_step=float(np.cos(tilt)),
        shear_mm=float(np.sin(tilt)),
        nodules=(Sphere(dot, 9.0, hu=2500.0),),
        noise_hu=1.0,
    )
    datasets = series.datasets()
    way = np.subtract(datasets[-1].ImagePositionPatient, datasets[0].ImagePositionPatient)
    assert way[:2] == pytest.approx((0, 0), abs=1e-9)
    made = volume(datasets, tmp_path, small_limits)
    assert made.notices[0].code is Code.TILT_CORRECTED
    assert f"{abs(angle_deg):.1f} degrees" in made.notices[0].text
    brightness = np.clip(made.hu - 300.0, 0, None)
    centre = np.argwhere(brightness) * brightness[brightness > 0][:, None] / brightness.sum()
    assert np.linalg.norm(made.grid.index_to_lps(centre.sum(axis=0)) - dot) < 0.2
    assert made.slices[3].plane.origin_lps_mm == pytest.approx(tuple(datasets[3].ImagePositionPatient))


def test_a_tilt_beyond_30_degrees_is_refused(small_series, small_limits, tmp_path):
    series = replace(small_series, shear_mm=2.0)
    (refusal,) = stacks(series.datasets(), tmp_path, small_limits)
    assert refusal.code is Code.TILT_TOO_LARGE
    assert refusal.text == "The gantry tilt of 45.0 degrees is beyond the 30 that are corrected."


def test_a_drift_below_half_a_degree_is_undone_by_whole_pixels_without_a_notice(
    small_series, small_limits, tmp_path
):
    series = replace(small_series, pixel_mm=0.05, shear_mm=0.015, noise_hu=0.0)
    limits = replace(small_limits, max_filled_slices=0)
    made = volume(series.datasets(), tmp_path, limits)
    assert made.notices == ()
    assert made.hu.shape[1] == 48 + 4


def test_names_and_instance_numbers_do_not_matter(small_series, small_limits, tmp_path):
    datasets = small_series.datasets()
    straight = volume(datasets, tmp_path / "straight", small_limits)
    random.Random(3).shuffle(datasets)
    for k, dataset in enumerate(datasets):
        dataset.InstanceNumber = (k * 5) % 7
        dataset.SliceLocation = -k
    shuffled = volume(datasets, tmp_path / "shuffled", small_limits)
    assert np.array_equal(straight.hu, shuffled.hu)
    assert straight.grid == shuffled.grid
    assert straight.slices == shuffled.slices


def test_jitter_of_two_hundredths_is_accepted_and_of_a_fifth_refused(small_series, small_limits, tmp_path):
    for name, jitter in (("small", 0.02), ("large", 0.4)):
        datasets = small_series.datasets()
        for k, dataset in enumerate(datasets):
            x, y, z = dataset.ImagePositionPatient
            dataset.ImagePositionPatient = [x, y, float(z) + jitter * (-1) ** k]
        found = stacks(datasets, tmp_path / name, small_limits)
        if name == "small":
            assert isinstance(found[0], Stack)
            assert found[0].missing == ()
        else:
            assert found[0].code is Code.IRREGULAR_SPACING
            assert found[0].text == "Distance between slices varies from 1.20 to 2.80 mm."


def test_a_slow_drift_of_the_spacing_is_refused_before_positions_are_off_by_half_a_slice(
    small_series, small_limits, tmp_path
):
    datasets = replace(small_series, slices=80, rows=32, columns=32).datasets()
    z = float(datasets[0].ImagePositionPatient[2])
    for k, dataset in enumerate(datasets):
        dataset.ImagePositionPatient = [*dataset.ImagePositionPatient[:2], z]
        z += 2.0 if k < 40 else 2.09
    (refusal,) = stacks(datasets, tmp_path, small_limits)
    assert refusal.code is Code.IRREGULAR_SPACING


def test_each_slice_has_its_own_rescale(small_series, small_limits, tmp_path):
    datasets = small_series.datasets()
    wanted = [true_hu(d) for d in datasets]
    for k, dataset in enumerate(datasets):
        stored = np.frombuffer(dataset.PixelData, "<i2") * 2 - 100 * k
        dataset.PixelData = stored.astype("<i2").tobytes()
        dataset.RescaleSlope, dataset.RescaleIntercept = "0.5", str(-1024 + 50 * k)
    assert np.array_equal(volume(datasets, tmp_path, small_limits).hu, wanted)


def test_spacing_tag_minus_20_is_ignored(small_series, small_limits, tmp_path):
    datasets = small_series.datasets()
    for dataset in datasets:
        dataset.SpacingBetweenSlices = "-20"
        dataset.SliceThickness = "2.5"
    made = volume(datasets, tmp_path, small_limits)
    assert made.grid.spacing_zyx_mm[0] == pytest.approx(2.0)


def test_unscanned_gaps_are_said(small_series, small_limits, tmp_path):
    made = volume(replace(small_series, thickness=1.25).datasets(), tmp_path, small_limits)
    assert made.notices[0].code is Code.SAMPLING_GAP
    assert made.notices[0].text == "There are unscanned gaps between slices: 1.25 mm thick, 2.00 mm apart."


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"ImagePositionPatient": None}, Code.NO_GEOMETRY),
        ({"ImageOrientationPatient": None}, Code.NO_GEOMETRY),
        ({"PixelSpacing": None}, Code.NO_GEOMETRY),
        ({"PixelSpacing": [0.0, 1.0]}, Code.NO_GEOMETRY),
        ({"ImageOrientationPatient": [1, 0, 0, 0.5, 1, 0]}, Code.BAD_ORIENTATION),
        ({"ImageOrientationPatient": [2, 0, 0, 0, 2, 0]}, Code.BAD_ORIENTATION),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, Code.LOCALIZER_ONLY),
    ],
)
def test_slices_without_a_usable_place_are_refused(small_series, small_limits, tmp_path, change, code):
    (refusal,) = stacks(replace(small_series, extra=change).datasets(), tmp_path, small_limits)
    assert refusal.code is code


def test_too_many_images_are_refused_before_they_are_sorted(small_series, small_limits, tmp_path):
    limits = replace(small_limits, max_instances=13)
    (refusal,) = stacks(small_series.datasets(), tmp_path, limits)
    assert refusal.code is Code.TOO_LARGE


def test_values_that_are_no_body_are_refused(small_series, small_limits, tmp_path):
    (stack,) = stacks(replace(small_series, extra={"RescaleIntercept": 0}).datasets(), tmp_path, small_limits)
    refusal = build(stack, read_pixels, "", "")
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.HU_IMPLAUSIBLE

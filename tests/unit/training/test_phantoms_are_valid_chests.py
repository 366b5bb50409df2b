from __future__ import annotations

import json
import shutil
import subprocess

import numpy as np
import pydicom
import pytest
import SimpleITK

from pipeline.domain.limits import SelectionLimits
from pipeline.domain.outcome import Refusal
from pipeline.lungs import find_lungs
from training.judge_tables import read_annotations
from training.phantom import KERNELS, ScanSettings, draw_settings, make_phantom
from training.phantom_files import series_uid, write_metaimage, write_series

SETTINGS = ScanSettings(2.5, 2.5, 25.0, "STANDARD", matrix=256)


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(12345, SETTINGS, nodules=8)


def test_the_same_seed_gives_the_same_scan_and_truth(phantom):
    again = make_phantom(12345, SETTINGS, nodules=8)
    np.testing.assert_array_equal(again.hu, phantom.hu)
    assert again.nodules == phantom.nodules
    assert again.mimics == phantom.mimics


def test_seeds_differ_in_slice_distance_kernel_and_noise():
    drawn = [draw_settings(seed) for seed in range(40)]
    assert {s.kernel for s in drawn} == set(KERNELS)
    assert len({s.slice_distance_mm for s in drawn}) >= 4
    assert all(20 <= s.noise_hu <= 60 for s in drawn)


def test_the_pipeline_finds_its_lungs(phantom):
    lungs = find_lungs(phantom.hu, phantom.grid.spacing_zyx_mm, SelectionLimits())
    assert not isinstance(lungs, Refusal)
    assert 2.0 < lungs.volume_l < 9.0
    for nodule in phantom.nodules:
        z, y, x = phantom.grid.lps_to_index(nodule.centre_lps_mm)
        assert lungs.search_at(np.array([z]), np.array([y]), np.array([x])).all()


def test_at_least_a_fifth_of_the_nodules_is_subsolid_and_sizes_lie_in_range(phantom):
    subsolid = [n for n in phantom.nodules if n.kind in ("part-solid", "ground-glass")]
    assert len(phantom.nodules) == 8
    assert len(subsolid) >= 2
    assert all(2.0 < n.diameter_mm < 33 for n in phantom.nodules)


def test_a_scan_holds_fifteen_imitators_or_more_apart_from_nodules(phantom):
    assert len(phantom.mimics) >= 15
    assert len({m.kind for m in phantom.mimics}) >= 6
    for mimic in phantom.mimics:
        for nodule in phantom.nodules:
            gap = np.linalg.norm(np.subtract(mimic.centre_lps_mm, nodule.centre_lps_mm))
            assert gap > nodule.diameter_mm / 2


def test_a_solid_nodule_is_soft_tissue_at_its_centre(phantom):
    solid = [n for n in phantom.nodules if n.kind == "solid" and n.diameter_mm > 6]
    assert solid
    for nodule in solid:
        z, y, x = np.rint(phantom.grid.lps_to_index(nodule.centre_lps_mm)).astype(int)
        assert -250 < float(phantom.hu[z, y - 1 : y + 2, x - 1 : x + 2].mean()) < 200


def test_the_noise_in_the_heart_is_what_the_settings_say():
    quiet = make_phantom(3, ScanSettings(2.5, 2.5, 20.0, "STANDARD", 256), nodules=0)
    loud = make_phantom(3, ScanSettings(2.5, 2.5, 60.0, "STANDARD", 256), nodules=0)
    z, y, x = np.rint(quiet.grid.lps_to_index((22.0, -20.0, 45.0))).astype(int)
    box = (slice(z - 2, z + 3), slice(y - 6, y + 7), slice(x - 6, x + 7))
    assert 17 < quiet.hu[box].std() < 28
    assert 50 < loud.hu[box].std() < 76


def test_the_series_reads_back_and_is_a_valid_ct(phantom, tmp_path):
    paths = write_series(phantom, tmp_path)
    first, last = pydicom.dcmread(paths[0]), pydicom.dcmread(paths[-1])
    assert str(first.PatientName) == "PHANTOM^SEED 12345"
    assert first.SeriesInstanceUID == last.SeriesInstanceUID == series_uid(phantom)
    assert len({pydicom.dcmread(p, stop_before_pixels=True).SOPInstanceUID for p in paths}) == len(paths)
    np.testing.assert_array_equal(first.pixel_array.astype(int) - 1024, phantom.hu[0])
    np.testing.assert_allclose(
        [float(v) for v in last.ImagePositionPatient],
        phantom.grid.index_to_lps((len(phantom.hu) - 1, 0, 0)),
        atol=1e-5,
    )
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert len(truth["nodules"]) == len(phantom.nodules)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy (dicom3tools) is not installed")
def test_dciodvfy_has_nothing_to_say(phantom, tmp_path):
    path = write_series(phantom, tmp_path)[len(phantom.hu) // 2]
    said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    lines = (said.stdout + said.stderr).splitlines()
    assert [line for line in lines if line.strip()] == ["CTImage"]


def test_the_metaimage_stands_where_the_phantom_stands(phantom, tmp_path):
    path = write_metaimage(phantom, tmp_path)
    write_metaimage(phantom, tmp_path)
    image = SimpleITK.ReadImage(str(path))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), phantom.hu)
    np.testing.assert_allclose(image.GetOrigin(), phantom.grid.origin_lps_mm, atol=1e-5)
    np.testing.assert_allclose(image.GetSpacing(), phantom.grid.spacing_zyx_mm[::-1], atol=1e-5)
    annotations = read_annotations(tmp_path / "annotations.csv")[path.stem]
    assert len(annotations) == len(phantom.nodules)
    np.testing.assert_allclose(annotations[0].position_mm, phantom.nodules[0].centre_lps_mm, atol=1e-5)

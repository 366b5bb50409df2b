"""MetaImages as LUNA16 ships them: direction matrix honoured, positions kept."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK

from pipeline.analysis import analyse_path
from pipeline.domain.outcome import Code, Outcome, Refusal
from pipeline.reading import read_metaimage
from tests.builders import ChestSeries
from tests.fakes import scripted_detector

AXES = {
    "identity": np.eye(3),
    "x and y flipped, as in some of LUNA16": np.diag([-1.0, -1.0, 1.0]),
    "z flipped": np.diag([1.0, -1.0, -1.0]),
    "left-handed": np.diag([-1.0, 1.0, 1.0]),
    "axes exchanged": np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]]),
}


@pytest.fixture(scope="module")
def chest():
    """Chest-like Hounsfield units with one bright voxel, (z, y, x)."""
    datasets = ChestSeries(slices=14, rows=48, columns=64, pixel_mm=4.0).datasets()
    hu = np.stack([np.frombuffer(d.PixelData, "<i2").reshape(48, 64) for d in datasets]) - 1024
    hu[5, 20, 30] = 3000
    return hu.astype(np.int16)


def written(hu, path, direction=None):
    image = SimpleITK.GetImageFromArray(hu)
    image.SetSpacing((4.0, 4.0, 2.0))
    image.SetOrigin((-100.0, 20.0, -300.0))
    image.SetDirection((np.eye(3) if direction is None else direction).ravel().tolist())
    SimpleITK.WriteImage(image, str(path))
    return image.TransformIndexToPhysicalPoint((30, 20, 5))


@pytest.mark.parametrize("name", AXES)
def test_a_voxel_stays_where_the_direction_matrix_puts_it(chest, tmp_path, name):
    position = written(chest, tmp_path / "1.2.3.mhd", AXES[name])
    volume = read_metaimage(tmp_path / "1.2.3.mhd")
    (index,) = np.argwhere(volume.hu == 3000)
    assert volume.grid.index_to_lps(index) == pytest.approx(position)
    assert np.diag(np.array(volume.grid.axes_zyx)[::-1]).tolist() == pytest.approx([1, 1, 1])
    assert volume.series_instance_uid == "1.2.3"
    assert not volume.hu.flags.writeable


def test_values_are_clipped_and_rounded(chest, tmp_path):
    values = chest.astype(np.float32)
    values[0, 0, :3] = -3024.0, 4000.0, -999.6
    written(values, tmp_path / "a.mha")
    volume = read_metaimage(tmp_path / "a.mha")
    assert volume.hu.dtype == np.int16
    assert volume.hu[0, 0, :3].tolist() == [-1024, 3071, -1000]


def test_an_analysis_goes_all_the_way(chest, small_limits, tmp_path):
    written(chest, tmp_path / "1.2.3.mhd")
    analysis = analyse_path(tmp_path / "1.2.3.mhd", scripted_detector(), small_limits, operating_point=0.5)
    assert analysis.outcome is Outcome.FINDINGS
    assert analysis.series_instance_uid == "1.2.3"
    assert analysis.received.spacing_zyx_mm == (2.0, 4.0, 4.0)


def test_the_geometry_rules_hold_for_metaimages_too(chest, tmp_path, small_limits):
    image = SimpleITK.GetImageFromArray(chest)
    image.SetSpacing((4.0, 4.0, 5.0))
    SimpleITK.WriteImage(image, str(tmp_path / "a.mhd"))
    analysis = analyse_path(tmp_path / "a.mhd", scripted_detector(), small_limits, operating_point=0.5)
    assert analysis.reason.code is Code.SLICES_TOO_THICK
    assert analysis.received.slices == 14


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"ObjectType = Nothing\n", Code.CORRUPT_INSTANCE),
        (b"ObjectType = Image\nNDims = 3\nDimSize = 9 9 9\nElementType = MET_SHORT\nElementDataFile = no.raw\n",)
        * 1
        + (Code.CORRUPT_INSTANCE,),
        (
            b"ObjectType = Image\nNDims = 3\nDimSize = 90000 90000 90000\nElementType = MET_SHORT\n"
            b"ElementDataFile = no.raw\n",
            Code.TOO_LARGE,
        ),
        (
            b"ObjectType = Image\nNDims = 2\nDimSize = 9 9\nElementType = MET_SHORT\nElementDataFile = no.raw\n",
            Code.NO_GEOMETRY,
        ),
    ],
)
def test_what_is_no_volume_is_refused(tmp_path, content, code):
    (tmp_path / "a.mhd").write_bytes(content)
    refusal = read_metaimage(tmp_path / "a.mhd")
    assert isinstance(refusal, Refusal)
    assert refusal.code is code


def test_a_path_that_is_not_there_raises(tmp_path, small_limits):
    for name in ("no.mhd", "no folder"):
        with pytest.raises(FileNotFoundError):
            analyse_path(tmp_path / name, scripted_detector(), small_limits, operating_point=0.5)

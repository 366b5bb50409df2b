from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.domain.geometry import Grid
from training.cli.main import app
from training.download import Download, read_download
from training.luna16 import write_metaimage
from training.plain_chest import PlainSettings, make_plain_chest
from training.preparing import prepare_download, read_cache_card
from training.scans import load_scan, person_of, subset_of

HEADER = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"
GRID = Grid((3, 4, 5), (2.0, 1.0, 1.0), (0.0, 0.0, 0.0))


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """Ten subsets with one small image each; nothing is wrong with it."""
    for k in range(10):
        write_metaimage(tmp_path / f"subset{k}" / f"1.2.{k}.mhd", np.zeros((3, 4, 5), np.int16), GRID)
    (tmp_path / "annotations.csv").write_text(f"{HEADER}1.2.0,1,2,3,5.5\n1.2.3,4,5,6,7.5\n")
    (tmp_path / "annotations_excluded.csv").write_text(f"{HEADER}1.2.0,9,9,9,-1\n")
    (tmp_path / "seriesuids.csv").write_text("".join(f"1.2.{k}\n" for k in range(10)))
    return tmp_path


def problems(root: Path) -> str:
    return "\n".join(read_download(root).problems)


def test_a_whole_download_has_no_problems(download: Path):
    found = read_download(download)
    assert found.problems == ()
    assert [s.subset for s in found.scans] == list(range(10))
    assert found.included["1.2.3"][0].diameter_mm == 7.5
    assert not found.simulated


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda d: (d / "subset3" / "1.2.3.raw").unlink(), "1.2.3.raw is missing; unpack its subset again"),
        (lambda d: (d / "subset3" / "1.2.3.raw").write_bytes(b"x" * 100), "is cut short, 100 of 120 bytes"),
        (lambda d: (d / "subset3" / "1.2.3.raw").write_bytes(b"x" * 121), "has 121 bytes, expected 120"),
        (lambda d: (d / "subset3" / "1.2.3.mhd").write_text("NDims = 3\n"), "the header lacks DimSize"),
        (lambda d: shutil.rmtree(d / "subset7"), "subset7 is missing; unpack subset7.zip."),
        (lambda d: (d / "annotations.csv").unlink(), "annotations.csv is missing; it is on LUNA16's download page"),
        (lambda d: (d / "annotations_excluded.csv").unlink(), "comes with LUNA16's evaluation script"),
        (
            lambda d: (d / "annotations.csv").write_text(f"{HEADER}9.9.9,1,2,3,5\n"),
            "annotations.csv has findings of 1 series of which there is no scan",
        ),
        (
            lambda d: (d / "annotations.csv").write_text("seriesuid,x,y,z,diameter_mm\n1.2.0,1,2,3,5\n"),
            "column coordX is missing",
        ),
        (
            lambda d: write_metaimage(d / "subset4" / "1.2.3.mhd", np.zeros((3, 4, 5), np.int16), GRID),
            "1.2.3 lies in subset3 and in subset4",
        ),
        (
            lambda d: (d / "subset3" / "1.2.3.mhd").unlink(),
            "seriesuids.csv lists 1 series that are missing or broken",
        ),
    ],
)
def test_what_is_missing_or_broken_is_named_with_what_to_do(download: Path, break_it, said: str):
    break_it(download)
    assert said in problems(download)


def test_a_folder_that_is_no_download_is_said_to_be_none(tmp_path: Path):
    assert "has no subset0 to subset9" in problems(tmp_path)


def test_the_command_lists_every_problem_and_prepares_nothing(download: Path):
    (download / "subset3" / "1.2.3.raw").unlink()
    (download / "subset5" / "1.2.5.raw").write_bytes(b"")
    out = download / "cache"
    result = CliRunner().invoke(app, ["prepare", "--luna16", str(download), "--out", str(out)])
    assert result.exit_code == 2
    assert "1.2.3.raw is missing" in result.output
    assert "1.2.5.raw is cut short, 0 of 120 bytes" in result.output
    assert "or give --anyway" in result.output
    assert not out.exists()


def test_checking_alone_writes_nothing(download: Path):
    out = download / "cache"
    result = CliRunner().invoke(app, ["prepare", "--luna16", str(download), "--out", str(out), "--check"])
    assert result.exit_code == 0
    assert "10 whole scans in 10 subsets, 2 nodules" in result.output
    assert not out.exists()


@pytest.fixture(scope="module")
def chest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A download with one chest, one image of nothing, and one nodule."""
    root = tmp_path_factory.mktemp("chest")
    hu, grid = make_plain_chest(1, PlainSettings(slices=40))
    write_metaimage(root / "subset0" / "1.5.mhd", hu, grid)
    write_metaimage(root / "subset1" / "1.6.mhd", np.full_like(hu, 40), grid)
    (root / "annotations.csv").write_text(f"{HEADER}1.5,30.0,5.0,40.0,6.0\n")
    (root / "annotations_excluded.csv").write_text(f"{HEADER}1.5,-30.0,5.0,40.0,-1\n")
    return root


@pytest.mark.timeout(900)
def test_scans_are_prepared_once_and_what_cannot_be_is_told(chest: Path, tmp_path: Path):
    found: Download = read_download(chest)
    made = [cached for *_, cached in prepare_download(found, tmp_path, "one chest", workers=2)]
    assert [(c.uid, c.nodules) for c in made if not c.fault] == [("1.5", 1)]
    assert "1.6.mhd" in next(c.fault for c in made if c.fault)
    scan = load_scan(tmp_path / "1.5.npz")
    assert (subset_of(tmp_path / "1.5.npz"), person_of(tmp_path / "1.5.npz")) == (0, "1.5")
    assert scan.grid is not None
    np.testing.assert_allclose(scan.grid.index_to_lps(scan.nodules[0, :3]), (30.0, 5.0, 40.0), atol=1e-6)
    assert scan.ignored[0, 3] == 10.0
    assert read_cache_card(tmp_path).data_set == "one chest"
    before = (tmp_path / "1.5.npz").stat().st_mtime_ns
    again = list(prepare_download(found, tmp_path, "one chest"))
    assert again[0][:2] == (1, 2)
    assert [c.uid for *_, c in again[1:]] == ["1.6"]
    assert (tmp_path / "1.5.npz").stat().st_mtime_ns == before
    assert not list(tmp_path.glob("*.part"))

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

import config
from pipeline.domain.geometry import Grid
from pipeline.reading import read_metaimage
from training.cohort_file import SUMS, CohortError, PlannedScan, plan, read_cohort
from training.judge_tables import read_annotations
from training.luna16 import write_metaimage
from training.phantom import draw_settings
from training.plain_chest import PlainSettings, make_plain_chest
from training.simulate import Sources, changed_images, open_cohort, phantom_settings, simulate

COHORTS = Path(config.__file__).parent / "cohorts"
NOWHERE = Sources({}, None)
SMALL = """
name = "small"
subsets = 2

[[parts]]
name = "plain"
base = "plain"
first_seed = 7
scans = 1
shams = 1
nodules = [
    { kind = "solid", diameter_mm = [10.0, 10.0] },
    { kind = "solid", diameter_mm = [8.0, 8.0], places = ["pleura"] },
    { kind = "ground-glass", diameter_mm = [9.0, 9.0] },
]
[parts.scanner]
slices = [40]
"""


def made(folder: Path, text: str = SMALL) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small.toml").write_text(text)
    assert list(simulate(folder / "small.toml", folder / "made", NOWHERE, lungs=True))[-1][:2] == (1, 1)
    return folder / "made"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("small"))


def benchmark() -> tuple[PlannedScan, ...]:
    return plan(read_cohort(COHORTS / "benchmark.toml"))


def test_frozen_cohort_files_are_as_they_were_frozen():
    lines = (COHORTS / SUMS).read_text().split("\n")[:-1]
    assert [line.partition("  ")[2] for line in lines] == ["benchmark.toml"]
    for line in lines:
        known, _, name = line.partition("  ")
        assert hashlib.sha256((COHORTS / name).read_bytes()).hexdigest() == known


def test_a_frozen_file_is_refused_when_one_byte_was_changed(tmp_path: Path):
    for name in (SUMS, "benchmark.toml"):
        shutil.copyfile(COHORTS / name, tmp_path / name)
    with (tmp_path / "benchmark.toml").open("a") as file:
        file.write("\n")
    with pytest.raises(CohortError, match="changed after it was frozen"):
        read_cohort(tmp_path / "benchmark.toml")


def test_the_benchmark_has_fifty_phantoms_fifty_insertions_and_scans_without_nodules():
    scans = benchmark()
    assert Counter(s.part for s in scans) == {"phantoms": 50, "insertions": 50, "nodule-free": 20}
    assert Counter(s.source for s in scans if s.source).most_common(1)[0][1] == 10
    assert len({s.uid for s in scans}) == len(scans)
    assert all(s.seed >= 20000 for s in scans)
    assert all(not s.wanted and not s.own_nodules for s in scans if s.part == "nodule-free")


def test_the_benchmark_has_enough_nodules_of_every_graded_class():
    wanted = [w for s in benchmark() for w in s.wanted]

    def count(kind: str, low: float, high: float = 99.0) -> int:
        return sum(w.kind == kind and low <= w.diameter_mm < high for w in wanted)

    assert count("solid", 3.2, 3.9) >= 100
    assert count("solid", 4.2, 5.0) >= 70
    assert count("solid", 6) >= 150
    assert count("part-solid", 6) >= 100
    assert count("ground-glass", 4.3, 5.1) >= 100
    assert count("ground-glass", 5.6, 6.8) >= 50
    assert count("ground-glass", 8) >= 50
    assert sum(w.place == "pleura" for w in wanted) >= 150


def test_scans_of_one_person_share_a_subset_and_parts_are_spread_evenly():
    scans = benchmark()
    by_source = {s.source: {t.subset for t in scans if t.source == s.source} for s in scans if s.source}
    assert all(len(subsets) == 1 for subsets in by_source.values())
    assert len({next(iter(subsets)) for subsets in by_source.values()}) == 5
    for part, each in (("phantoms", 5), ("nodule-free", 2)):
        assert set(Counter(s.subset for s in scans if s.part == part).values()) == {each}


def test_the_benchmarks_scanners_are_none_of_the_training_phantoms():
    trained = {draw_settings(seed).slice_distance_mm for seed in range(1, 400)}
    used = {phantom_settings(s).slice_distance_mm for s in benchmark() if s.part == "phantoms"}
    assert len(used) >= 8
    assert not used & trained


def test_the_same_file_gives_the_same_plan_and_another_byte_other_uids(tmp_path: Path):
    (tmp_path / "a.toml").write_text(SMALL)
    (tmp_path / "b.toml").write_text(SMALL + "\n")
    first, again, other = (plan(read_cohort(tmp_path / n)) for n in ("a.toml", "a.toml", "b.toml"))
    assert first == again
    assert first[0].uid != other[0].uid
    assert first[0].wanted == other[0].wanted


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("slices = [40]", "colour = [1]", "scanner has no colour; known are"),
        ('kind = "solid"', 'kind = "liquid"', "kind"),
        ("[8.0, 8.0]", "[2.0, 8.0]", "a nodule needs 3 <= least"),
        ("shams = 1", "own_nodules = 3", "own_nodules belong to base 'phantom'"),
        ("shams = 1", 'sources = ["x"]', "sources belong to base 'real'"),
        ("subsets = 2", "subsets = 11", "has 2 to 10"),
        ("shams = 1", "sham = 1", "sham"),
        ('name = "small"', "name = ", "cannot be read as TOML"),
    ],
)
def test_a_wrong_cohort_file_is_refused_by_the_key(tmp_path: Path, old: str, new: str, sentence: str):
    path = tmp_path / "wrong.toml"
    path.write_text(SMALL.replace(old, new, 1))
    with pytest.raises(CohortError, match=sentence):
        read_cohort(path)


def test_the_same_cohort_made_twice_is_equal_to_the_voxel(small: Path, tmp_path: Path):
    again = made(tmp_path)
    for table in ("annotations.csv", "truth.csv", "candidates_V2.csv", "scans.csv", "cohort.json"):
        assert (again / table).read_bytes() == (small / table).read_bytes()
    first, second = (next(f.glob("subset*/*.raw")) for f in (small, again))
    assert first.read_bytes() == second.read_bytes()


def test_inserted_nodules_are_seen_where_the_tables_say(small: Path):
    path = next(small.glob("subset*/*.mhd"))
    volume = read_metaimage(path)
    nodules = read_annotations(small / "annotations.csv")[path.stem]
    assert len(nodules) == 3
    settings = json.loads(next((small / "rows").glob("*.json")).read_text())["settings"]
    plain, _ = make_plain_chest(7, PlainSettings(slices=settings["slices"]))
    for nodule in nodules:
        z, y, x = np.rint(volume.grid.lps_to_index(nodule.position_mm)).astype(int)
        before, after = (hu[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2].mean() for hu in (plain, volume.hu))
        assert after > before + 100
        assert 6.0 < nodule.diameter_mm < 11.0


@pytest.mark.timeout(900)
def test_two_processes_make_the_same_cohort_as_one(tmp_path: Path):
    text = SMALL.replace("scans = 1", "scans = 2").replace("shams = 1", "shams = 0")
    (tmp_path / "two.toml").write_text(text)
    for workers in (1, 2):
        steps = list(simulate(tmp_path / "two.toml", tmp_path / str(workers), NOWHERE, workers=workers))
        assert steps[-1][:2] == (2, 2)
    for name in ("scans.csv", "truth.csv", "seriesuids.csv", "cohort.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_lung_masks_are_read_as_luna16s_are(small: Path):
    path = next(small.glob("seg-lungs-LUNA16/*.mhd"))
    assert path.with_suffix(".zraw").is_file()
    image = SimpleITK.ReadImage(str(path))
    mask = SimpleITK.GetArrayFromImage(image)
    assert set(np.unique(mask)) == {0, 3, 4}
    for label, sign in ((3, 1), (4, -1)):
        z, y, x = np.argwhere(mask == label).mean(axis=0)
        assert sign * image.TransformContinuousIndexToPhysicalPoint([x, y, z])[0] > 20
    assert image.GetSize() == SimpleITK.ReadImage(str(next(small.glob("subset*/*.mhd")))).GetSize()


def test_a_finished_scan_is_not_made_again(small: Path):
    before = {p: p.stat().st_mtime_ns for p in small.glob("subset*/*")}
    steps = list(simulate(small.parent / "small.toml", small, NOWHERE))
    assert steps == [(1, 1, "scans that were there")]
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert changed_images(small) == []


def test_a_cohort_whose_file_was_changed_is_refused(small: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(small, copy)
    assert open_cohort(copy).complete
    with (copy / "cohort.toml").open("a") as file:
        file.write("# only a remark\n")
    with pytest.raises(CohortError, match="was changed"):
        open_cohort(copy)


def test_another_cohort_is_not_mixed_into_a_folder(small: Path, tmp_path: Path):
    (tmp_path / "small.toml").write_text(SMALL.replace("first_seed = 7", "first_seed = 8"))
    with pytest.raises(CohortError, match="holds another cohort"):
        list(simulate(tmp_path / "small.toml", small, NOWHERE))


def test_changed_voxels_are_noticed(small: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(small, copy)
    raw = next(copy.glob("subset*/*.raw"))
    content = bytearray(raw.read_bytes())
    content[1000] ^= 1
    raw.write_bytes(content)
    assert changed_images(copy) == ["plain-7"]


def test_missing_real_scans_are_named(tmp_path: Path):
    with pytest.raises(CohortError, match="needs the real scans LIDC-IDRI-0003, LIDC-IDRI-0004"):
        list(simulate(COHORTS / "benchmark.toml", tmp_path, NOWHERE, parts=["insertions"]))


def test_a_metaimage_keeps_an_oblique_and_flipped_grid(tmp_path: Path):
    turn = np.deg2rad(20)
    z, y = (0.0, -np.sin(turn), np.cos(turn)), (0.0, np.cos(turn), np.sin(turn))
    grid = Grid((4, 5, 6), (2.5, 0.7, 0.8), (10.0, -20.0, 30.0), (z, y, (-1.0, 0.0, 0.0)))
    hu = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    write_metaimage(tmp_path / "a.mhd", hu, grid)
    image = SimpleITK.ReadImage(str(tmp_path / "a.mhd"))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), hu)
    for index in ((0, 0, 0), (3, 1, 5), (2, 4, 0)):
        point = image.TransformIndexToPhysicalPoint([int(i) for i in index[::-1]])
        np.testing.assert_allclose(point, grid.index_to_lps(index), atol=1e-5)

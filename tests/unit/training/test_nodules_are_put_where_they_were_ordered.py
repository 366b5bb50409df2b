from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.domain.geometry import Grid
from pipeline.domain.limits import SelectionLimits
from pipeline.domain.outcome import Refusal
from pipeline.lungs import find_lungs
from training.cohort_file import WantedNodule
from training.insertion import Look
from training.placing import LEAST_PART, Ground, Placing
from training.plain_chest import PlainSettings, make_plain_chest

LOOK = Look((1.0, 0.6, 0.6), 20.0, (0.3, 0.5, 0.5))
AIRWAY_MM = 9.0


@pytest.fixture(scope="module")
def chest() -> tuple[NDArray[np.int16], Grid]:
    """A plain chest with an airway from top to bottom of one lung."""
    hu, grid = make_plain_chest(3, PlainSettings())
    hu = hu.copy()
    z, y, x = np.meshgrid(*(np.arange(n) for n in hu.shape), indexing="ij", sparse=True)
    place = grid.index_to_lps(np.stack(np.broadcast_arrays(z[:1], y, x), -1)[0])
    airway = np.hypot(place[..., 1], place[..., 0] - 30.0) < AIRWAY_MM
    rng = np.random.default_rng(0)
    hu[:, airway] = np.clip(-1000 + 20 * rng.standard_normal(hu[:, airway].shape), -1024, 3071).astype(np.int16)
    return hu, grid


def ground(chest: tuple[NDArray[np.int16], Grid]) -> Ground:
    lungs = find_lungs(chest[0], chest[1].spacing_zyx_mm, SelectionLimits(min_lung_l=0.1))
    assert not isinstance(lungs, Refusal)
    return Ground(*chest, lungs)


def depth_in_airway(where: Ground, chest: tuple[NDArray[np.int16], Grid], centre: NDArray[np.float64]) -> float:
    x, y, _ = chest[1].index_to_lps(centre + where.start)
    return AIRWAY_MM - float(np.hypot(y, x - 30.0))


@pytest.mark.parametrize("place", ["free", "pleura", "vessel"])
def test_nothing_is_put_into_an_airway(chest, place):
    where, rng = ground(chest), np.random.default_rng(1)
    drawn = [where.centre(rng, place, 5.0) for _ in range(1500)]
    centres = [c for c in drawn if c is not None]
    assert len(centres) > 20
    assert max(depth_in_airway(where, chest, c) for c in centres) < 2.5


def test_a_pleural_nodule_touches_the_wall_and_a_free_one_does_not(chest):
    where = ground(chest)
    wall = where.hu > -300
    placing = Placing(where, LOOK, [], 5)
    for place in ("pleura", "free"):
        wanted = WantedNodule("solid", 7.0, place)
        done = placing.nodule(wanted)
        assert done is not None
        reach = [np.arange(n) for n in where.hu.shape]
        z, y, x = ((r - c) * s for r, c, s in zip(reach, done.centre_zyx, where.spacing, strict=True))
        near = np.sqrt((z**2)[:, None, None] + (y**2)[:, None] + x**2) < 7.0 / 2 + 1.5
        assert bool((wall & near).sum() > 3) is (place == "pleura")
        assert LEAST_PART * 7.0 <= done.diameter_mm < 7.8
        assert (done.place, done.wanted_mm) == (place, 7.0)


def test_nodules_keep_apart_from_each_other_and_from_known_findings(chest):
    where = ground(chest)
    known = np.asarray(where.hu.shape) / 2
    placing = Placing(where, LOOK, [(known, 10.0)], 6)
    wanted = WantedNodule("solid", 6.0, "free")
    done = [n for n in (placing.nodule(wanted) for _ in range(5)) if n is not None]
    assert len(done) >= 3
    places = [n.centre_zyx * where.spacing for n in done]
    for k, place in enumerate(places):
        assert np.linalg.norm(place - known * where.spacing) > 10 + 3 + 4
        assert all(np.linalg.norm(place - other) > 6 + 4 for other in places[:k])


def test_a_nodule_that_is_refused_leaves_the_scan_as_it_was(chest):
    where = ground(chest)
    before = where.hu.copy()
    placing = Placing(where, LOOK, [(np.asarray(where.hu.shape) / 2, 500.0)], 7)
    assert placing.nodule(WantedNodule("solid", 6.0, "free")) is None
    np.testing.assert_array_equal(where.hu, before)

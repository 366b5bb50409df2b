"""The pool on a device cuts what the samplers cut, whichever scans are resident and whoever draws."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.training.tiny import PAPER, recipe, scan, write_scans
from training import feed as feeding
from training.feed import PatchSource, WorkerError, feed, patches
from training.pool import Residents, VoxelPool, plan_of
from training.sampling import CandidateSampler, PatchSampler
from training.screening import train_screening

CPU = torch.device("cpu")
SHAPE = (10, 30, 30)


def source(folder: Path, resident: int = 0) -> PatchSource:
    sampler = partial(PatchSampler, shape=SHAPE, seed=3)
    return PatchSource(folder, (), sampler, 6, slice(0, 6), SHAPE, 3, resident)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_pool_cuts_what_the_sampler_cuts(device: str):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    scans = [scan("phantom-1"), scan("patient", seed=5)]
    pool = VoxelPool(scans, torch.device(device))
    sampler = PatchSampler(scans, SHAPE, 3)
    expected, labels = sampler.batch(0, 24)
    plan = plan_of(sampler.draws(0, 24))
    assert plan.labels.tolist() == labels.tolist()
    np.testing.assert_allclose(pool.cut(plan, SHAPE).cpu().numpy(), expected, atol=0.3)


def test_patches_beyond_the_edge_repeat_it_as_the_sampler_does():
    at_edge = scan()
    at_edge.places["free"] = at_edge.places["any"] = np.array([[0, 0, 0], [59, 89, 89], [1, 88, 2]], np.int16)
    candidates = {"phantom-1": np.array([[0.0, 0.0, 0.0], [59.0, 89.0, 2.0]])}
    sampler = CandidateSampler([at_edge], candidates, (24, 60, 60), 1)
    expected = sampler.batch(0, 9)
    plan = plan_of(sampler.draws(0, 9))
    np.testing.assert_allclose(VoxelPool([at_edge], CPU).cut(plan, (24, 60, 60)).numpy(), expected.hu, atol=0.3)
    np.testing.assert_array_equal(plan.offsets_mm.numpy(), expected.offsets_mm)


def test_scans_take_turns_and_all_of_them_come(tmp_path: Path):
    folder = write_scans(tmp_path, 4)
    rota = Residents(folder, (), seed=1, capacity=2, every=10)
    seen = [[s.name for s in rota.at(number)] for number in (0, 9, 10, 20, 30)]
    assert seen[0] == seen[1] != seen[2]
    assert all(len(names) == 2 for names in seen)
    assert len({name for names in seen for name in names}) == 4
    assert [s.name for s in Residents(folder, (), seed=1, capacity=2, every=10).at(20)] == seen[3]


def test_with_room_for_all_nothing_is_exchanged(tmp_path: Path):
    rota = Residents(write_scans(tmp_path, 3), (), seed=1)
    assert not rota.rotate
    assert [s.name for s in rota.at(0)] == ["phantom-1", "phantom-2", "phantom-3"]
    assert rota.turn(10**6) == 0


def test_batches_are_the_same_whoever_makes_them(tmp_path: Path):
    given = source(write_scans(tmp_path, 3), resident=2)
    inline, beside = patches(given, CPU, 48, 0), patches(given, CPU, 48, 2)
    for _ in range(4):
        (one, plan), (other, same) = next(inline), next(beside)
        assert torch.equal(one, other)
        assert plan.names == same.names
    beside.close()


def test_a_dead_maker_of_batches_ends_the_run_with_a_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(feeding, "LOOK_AFTER_S", 0.2)
    with pytest.raises(WorkerError, match="A process that makes batches has ended with 7"):
        next(feed(partial(exit, 7), 0, 1))


def test_each_process_of_a_team_gets_its_part_of_the_batch(tmp_path: Path):
    folder = write_scans(tmp_path)
    whole, _ = next(patches(source(folder), CPU, 5, 0))
    halves = []
    for part in (slice(0, 3), slice(3, 6)):
        given = source(folder)
        half = PatchSource(given.folder, (), given.make_sampler, 6, part, SHAPE, 3)
        halves.append(next(patches(half, CPU, 5, 0))[0])
    assert torch.equal(torch.cat(halves), whole)


def test_a_run_trains_with_batches_made_beside_it(tmp_path: Path):
    folder = write_scans(tmp_path / "scans")
    inline = train_screening(recipe(screening=PAPER), folder, (), tmp_path / "inline", workers=0)
    beside = train_screening(recipe(screening=PAPER), folder, (), tmp_path / "beside", workers=1)
    one, other = (torch.load(path, weights_only=True)["network"] for path in (inline, beside))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())

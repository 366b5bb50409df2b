"""Tiles and the mask: nothing to search is lost, nothing changes by cutting (T3)."""

import dataclasses

import numpy as np
import pytest
import torch

from pipeline.detect.screen import FCN_LATTICE, FCNScreening, ModernScreening
from pipeline.detect.tiles import CoverageError, check_coverage, cut, padded_tiles, valid_tiles
from pipeline.detect.weights import build_screening
from tests.unit.detect.scans import CPU, SMALL_FCN, SMALL_MODERN, ignore, lively, searched_everywhere


def noise(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 400, shape).astype(np.int16)


def fcn_scores(scan, tile) -> np.ndarray:
    spec = dataclasses.replace(SMALL_FCN, tile_zyx=tile)
    net = lively(build_screening(spec))
    CPU.place(net)
    return FCNScreening(net, spec, CPU).scores(scan, ignore)


@torch.inference_mode()
def test_fcn_scores_equal_the_dense_map_of_the_padded_scan_whatever_the_tile():
    scan = searched_everywhere(noise((15, 40, 44)))
    padded = np.pad(scan.hu, [(5, 5), (15, 16), (15, 16)], constant_values=-1000)
    net = lively(build_screening(SMALL_FCN))
    dense = net(CPU.tensor(padded[None], scan.preprocessing))[0].softmax(0)[1].numpy()
    for tile in ((16, 16, 16), (7, 9, 5)):
        scores = fcn_scores(scan, tile)
        assert scores.shape == (16, 21, 23)
        assert np.abs(scores - dense[:16, :21, :23]).max() < 1e-5


def test_masked_fourth_layer_scores_the_mask_alone_and_the_same():
    hu = noise((14, 40, 40), seed=4)
    search = np.zeros(hu.shape, bool)
    search[4:9, 10:25, 5:18] = True
    everywhere = fcn_scores(searched_everywhere(hu), (8, 8, 8))
    masked = fcn_scores(searched_everywhere(hu, search=search), (8, 8, 8))
    inside = searched_everywhere(hu, search=search).search_at(*FCN_LATTICE.axes(masked.shape))
    assert inside.any()
    assert (masked[~inside] == -1).all()
    assert np.abs(masked[inside] - everywhere[inside]).max() < 1e-5


def test_empty_tiles_are_skipped_and_full_ones_are_not():
    search = np.zeros((20, 20, 20), bool)
    search[2, 3, 4] = search[18, 18, 18] = True
    tiles = valid_tiles(search, (5, 5, 5), (1, 2, 2), (10, 30, 30), (5, 15, 15))
    assert {tile.shape_zyx for tile in tiles} == {(14, 38, 38)}
    assert [tile.begin_zyx for tile in tiles] == [(2, 3, 4), (18, 18, 18)]
    assert tiles[0].first_zyx == (-3, -9, -7)
    assert tiles[1].end_zyx == (20, 20, 20)


@pytest.mark.parametrize("seed", range(6))
def test_padded_tiles_cover_any_search_region_evenly_with_margins_at_inner_edges(seed):
    rng = np.random.default_rng(seed)
    search = np.zeros(tuple(rng.integers(20, 140, 3)), bool)
    low = [int(rng.integers(0, n // 2)) for n in search.shape]
    high = [int(rng.integers(a + 1, n + 1)) for a, n in zip(low, search.shape, strict=True)]
    search[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    margin, stride, coarsest = (8, 16, 16), (2, 4, 4), (16, 32, 32)
    tiles = padded_tiles(search, (64, 128, 160), margin, stride, coarsest)
    count = np.zeros(search.shape, int)
    for tile in tiles:
        shape = tile.shape_zyx
        assert all(n % c == 0 and n <= m for n, c, m in zip(shape, coarsest, (64, 128, 160), strict=True))
        count[tile.in_scores] += 1
        for axis in range(3):
            before = tile.skip_zyx[axis] * stride[axis]
            kept = (tile.end_zyx[axis] - tile.begin_zyx[axis]) * stride[axis]
            assert before >= (0 if tile.begin_zyx[axis] == low[axis] else margin[axis])
            after = shape[axis] - before - kept
            assert after >= (0 if tile.end_zyx[axis] == high[axis] else margin[axis])
    assert count.max() == 1
    assert count[search].min() == 1


def test_a_narrow_top_costs_less_than_the_box_around_everything():
    search = np.zeros((96, 64, 96), bool)
    search[:56, 28:36, 40:56] = True
    search[56:] = True
    tiles = padded_tiles(search, (96, 352, 512), (8, 16, 16), (2, 4, 4), (16, 32, 32))
    across = {tile.shape_zyx[1:] for tile in tiles}
    assert (32, 64) in across
    assert (256, 384) in across
    assert sum(np.prod(tile.shape_zyx) for tile in tiles) < 192 * 256 * 384


def test_a_place_to_search_outside_every_tile_is_an_error():
    search = np.zeros((4, 4, 4), bool)
    search[3, 2, 1] = True
    with pytest.raises(CoverageError, match=r"^1 cells to search lie in no tile, the first at \(3, 2, 1\)\.$"):
        check_coverage(search, ())


def test_a_tile_too_short_for_its_margins_is_refused():
    with pytest.raises(ValueError, match="too short for margins of 16"):
        padded_tiles(np.ones((4, 4, 4), bool), (64, 48, 64), (8, 16, 16), (2, 4, 4), (16, 32, 32))


def test_nothing_to_search_needs_no_tile():
    assert padded_tiles(np.zeros((4, 4, 4), bool), (64, 64, 64), (8, 16, 16), (2, 4, 4), (16, 32, 32)) == ()
    assert valid_tiles(np.zeros((4, 4, 4), bool), (2, 2, 2), (1, 2, 2), (10, 30, 30), (5, 15, 15)) == ()


@torch.inference_mode()
def test_every_modern_cell_holds_the_answer_of_the_network_on_its_own_tile():
    scan = searched_everywhere(noise((40, 100, 150), seed=2))
    spec = dataclasses.replace(SMALL_MODERN, tile_zyx=(48, 96, 96))
    net = lively(build_screening(spec), seed=3)
    CPU.place(net)
    answer = ModernScreening(net, spec, CPU).answer(scan, ignore)
    assert answer.shape == (5, 20, 25, 38)
    tiles = padded_tiles(np.ones(answer.shape[1:], bool), spec.tile_zyx, spec.margin_zyx, (2, 4, 4), (16, 32, 32))
    assert len(tiles) == 1 * 2 * 2
    for tile in tiles:
        direct = net(CPU.tensor(cut(scan.hu, tile.first_zyx, tile.shape_zyx, -1000)[None], scan.preprocessing))[
            0
        ].numpy()
        for cell in (tile.begin_zyx, tuple(e - 1 for e in tile.end_zyx)):
            first = [c - f // s for c, f, s in zip(cell, tile.first_zyx, (2, 4, 4), strict=True)]
            assert np.allclose(answer[:, *cell], direct[:, *first], atol=1e-4)


def test_a_cut_beyond_the_volume_is_padded():
    hu = np.arange(8, dtype=np.int16).reshape(2, 2, 2)
    box = cut(hu, (-1, 0, 1), (3, 2, 2), -1000)
    assert box[0].tolist() == [[-1000, -1000]] * 2
    assert box[1].tolist() == [[1, -1000], [3, -1000]]
    assert (cut(hu, (5, 0, 0), (2, 2, 2), -1000) == -1000).all()
    assert (cut(hu, (-9, 0, 0), (2, 2, 2), -1000) == -1000).all()

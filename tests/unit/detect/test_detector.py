"""The detector from volume to findings, with small random networks: same scan, same findings (T9, T13)."""

import dataclasses

import numpy as np
import pytest
import torch

from pipeline.detect.detector import TwoStageDetector
from pipeline.detect.placement import Placement, choose
from pipeline.detect.reduce import Reduction
from pipeline.detect.resample import Prepared
from pipeline.detect.screen import FCNScreening, ModernScreening, Proposal
from pipeline.detect.weights import ReductionSpec, ScreeningSpec, build_reduction, build_screening
from pipeline.domain.finding import Detection
from pipeline.domain.geometry import Grid
from pipeline.domain.limits import SelectionLimits
from pipeline.domain.outcome import Code, Refusal
from tests.unit.detect.scans import (
    CPU,
    SMALL_FCN,
    SMALL_MODERN,
    SMALL_REDUCTION,
    chest,
    ignore,
    lively,
    searched_everywhere,
    volume,
    weights,
)

BFLOAT16 = Placement(torch.device("cpu"), torch.bfloat16)
SHAPE, SPACING = (20, 56, 56), (3.0, 2.8, 2.8)
PLAIN = Grid(SHAPE, SPACING, (-77.0, -77.0, -28.5))
TINY_CHEST = SelectionLimits(min_lung_l=0.1)
NODULES = [(10, 28, 17, 12.0), (8, 24, 38, 9.0)]


def detect(screening=SMALL_MODERN, reduction=SMALL_REDUCTION, placement=CPU, grid=PLAIN) -> Detection:
    detector = TwoStageDetector(weights(screening, reduction), placement, TINY_CHEST)
    detection = detector.detect(volume(chest(SHAPE, SPACING, nodules=NODULES), grid))
    assert isinstance(detection, Detection)
    return detection


@pytest.mark.parametrize(
    ("screening", "reduction"),
    [(SMALL_MODERN, SMALL_REDUCTION), (SMALL_MODERN, None), (SMALL_FCN, SMALL_REDUCTION)],
)
def test_findings_are_ordered_plausible_and_the_same_every_time(screening, reduction):
    first, second = (detect(screening, reduction) for _ in range(2))
    assert first.findings == second.findings
    assert first.candidates == second.candidates
    assert 0 < len(first.findings) <= len(first.candidates) <= 20
    probabilities = [f.probability for f in first.findings]
    assert probabilities == sorted(probabilities, reverse=True)
    assert all(0 < p < 1 for p in probabilities)
    assert all(2 <= f.diameter_mm <= 40 for f in first.findings)
    scores = [c.score for c in first.candidates]
    assert scores == sorted(scores, reverse=True)
    assert set(first.timings_s) == {"lungs", "resample", "screening", "reduction"}
    assert first.model.name == "test"
    assert [p.name for p in first.operating_points] == ["balanced", "sensitive"]


def test_candidates_lie_in_the_search_region_alone():
    places = np.array([c.position_lps_mm for c in detect().candidates])
    assert (np.abs(places[:, 0]) < 65).all()
    assert (np.abs(places[:, 1]) < 56).all()


TURN = np.linalg.qr(np.random.default_rng(7).normal(size=(3, 3)))[0]
GRIDS = {
    "feet first": ((0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (-1.0, 0.0, 0.0)),
    "oblique": tuple(tuple(float(v) for v in row) for row in TURN),
}


@pytest.mark.parametrize("name", GRIDS)
def test_the_same_voxels_on_another_grid_give_the_same_findings_there(name):
    other = Grid(SHAPE, SPACING, (31.0, -7.0, 900.0), GRIDS[name])
    here, there = detect(), detect(grid=other)
    assert len(here.findings) == len(there.findings)
    for a, b in zip(here.findings, there.findings, strict=True):
        assert np.allclose(PLAIN.lps_to_index(a.position_lps_mm), other.lps_to_index(b.position_lps_mm), atol=1e-6)
        assert (a.diameter_mm, a.probability) == (b.diameter_mm, b.probability)


def test_fcn_findings_do_not_depend_on_the_tile():
    few = detect(SMALL_FCN)
    many = detect(dataclasses.replace(SMALL_FCN, tile_zyx=(9, 21, 30)))
    assert len(few.findings) == len(many.findings)
    for a, b in zip(few.findings, many.findings, strict=True):
        assert a.position_lps_mm == pytest.approx(b.position_lps_mm, abs=1e-3)
        assert a.probability == pytest.approx(b.probability, abs=1e-5)


def small_scan() -> Prepared:
    return searched_everywhere(chest((24, 64, 64), (1.25, 0.7, 0.7), nodules=[(12, 32, 20, 6.0)]))


@torch.inference_mode()
def test_bfloat16_gives_the_scores_of_float32_within_two_hundredths():
    exact, rough = (
        FCNScreening(placed(SMALL_FCN, placement), SMALL_FCN, placement).scores(small_scan(), ignore)
        for placement in (CPU, BFLOAT16)
    )
    assert exact.std() > 0.01
    assert np.abs(exact - rough).max() < 0.02


@torch.inference_mode()
def test_bfloat16_gives_the_heat_offsets_and_diameters_of_float32_within_a_twentieth_of_their_spread():
    exact, rough = (
        ModernScreening(placed(SMALL_MODERN, placement), SMALL_MODERN, placement).answer(small_scan(), ignore)
        for placement in (CPU, BFLOAT16)
    )
    for channel in range(5):
        assert np.abs(exact[channel] - rough[channel]).mean() < 0.05 * exact[channel].std()


def test_bfloat16_second_stage_marks_lie_where_float32_has_them():
    proposals = [Proposal((12.0, 32.0, x), 0.5, None) for x in (20.0, 30.0, 40.0)]
    exact, rough = (
        Reduction(placed(SMALL_REDUCTION, placement), 2, placement).judge(small_scan(), proposals, ignore)
        for placement in (CPU, BFLOAT16)
    )
    for a, b in zip(exact, rough, strict=True):
        assert a.index_zyx == pytest.approx(b.index_zyx, abs=0.5)
        assert a.diameter_mm == pytest.approx(b.diameter_mm, rel=0.05)
        assert a.reduction_logit == pytest.approx(b.reduction_logit, abs=0.1)


def placed(spec: ScreeningSpec | ReductionSpec, placement: Placement) -> torch.nn.Module:
    net = lively(build_screening(spec) if isinstance(spec, ScreeningSpec) else build_reduction(spec))
    placement.place(net)
    return net


def test_progress_names_each_step_and_its_part():
    heard = []
    detector = TwoStageDetector(weights(), CPU, TINY_CHEST)
    detector.detect(volume(chest()), lambda step, part: heard.append((step, part)))
    assert list(dict.fromkeys(step for step, _ in heard)) == ["lungs", "resample", "screening", "reduction"]
    for step in ("lungs", "resample", "screening", "reduction"):
        parts = [part for name, part in heard if name == step]
        assert parts[0] == 0.0
        assert parts[-1] == 1.0
        assert parts == sorted(parts)


def test_no_lungs_are_a_refusal():
    refusal = TwoStageDetector(weights(), CPU, SelectionLimits()).detect(volume(chest(SHAPE, SPACING), PLAIN))
    assert isinstance(refusal, Refusal)
    assert refusal.code is Code.NO_LUNG_FOUND


def test_notices_of_the_lungs_go_on_into_the_detection():
    detector = TwoStageDetector(weights(), CPU, TINY_CHEST)
    detection = detector.detect(volume(chest(SHAPE, SPACING, taper=False), PLAIN))
    assert isinstance(detection, Detection)
    assert [n.code for n in detection.notices] == [Code.LUNG_CUT]


def test_a_scan_without_a_candidate_has_no_findings():
    blind = dataclasses.replace(SMALL_MODERN, floor=1.0)
    assert detect(blind).findings == ()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_cuda_finds_what_the_cpu_finds_within_the_stated_tolerance():
    cpu, cuda = detect(), detect(placement=choose("cuda", "float32"))
    for a, b in zip(cpu.findings[:5], cuda.findings[:5], strict=True):
        assert a.position_lps_mm == pytest.approx(b.position_lps_mm, abs=0.5)
        assert a.probability == pytest.approx(b.probability, abs=0.05)

"""Equation 2 (T5) and the second stage's patches (T4)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.detect.box_code import decode, encode
from pipeline.detect.nets.residual import MEDIAN_LOG_DIAMETER, PATCH
from pipeline.detect.reduce import patch_centre, patch_start
from pipeline.detect.resample import PREPROCESSING
from pipeline.detect.screen import FCN_LATTICE

SIZE_MM = np.asarray(PATCH) * np.asarray(PREPROCESSING.spacing_zyx_mm)


def test_patch_measures_30_by_42_by_42_mm():
    assert SIZE_MM.tolist() == pytest.approx([30.0, 42.0, 42.0])
    assert np.linalg.norm(SIZE_MM) == pytest.approx(66.54, abs=0.01)


@pytest.mark.parametrize(("diameter", "target"), [(3.25, -3.02), (6.43, -2.34), (10.0, -1.90), (32.27, -0.72)])
def test_diameter_targets_are_those_of_the_table(diameter, target):
    code = encode([0.0, 0.0, 0.0], diameter, [0.0, 0.0, 0.0], SIZE_MM)
    assert code[3] == pytest.approx(target, abs=0.005)


def test_the_first_diameter_bias_is_the_median_nodule():
    _, diameter = decode([0.0, 0.0, 0.0, MEDIAN_LOG_DIAMETER], [0.0, 0.0, 0.0], SIZE_MM)
    assert diameter == pytest.approx(6.43, abs=0.03)


def test_plus_one_is_the_positive_face():
    proposal = np.array([10.0, 20.0, 30.0])
    assert encode(proposal + SIZE_MM / 2, 5.0, proposal, SIZE_MM)[:3].tolist() == [1.0, 1.0, 1.0]
    assert encode(proposal - [0.0, 0.0, 21.0], 5.0, proposal, SIZE_MM)[:3] == pytest.approx([0.0, 0.0, -1.0])


@given(
    st.lists(st.tuples(*[st.floats(-7.0, 7.0)] * 3, st.floats(2.5, 39.0)), min_size=1, max_size=5),
    st.tuples(*[st.floats(-300, 300)] * 3),
)
def test_what_is_encoded_is_decoded(nodules, proposal):
    values = np.array(nodules)
    truth = np.asarray(proposal) + values[:, :3]
    centre, diameter = decode(encode(truth, values[:, 3], proposal, SIZE_MM), proposal, SIZE_MM)
    assert np.allclose(centre, truth, atol=1e-9)
    assert np.allclose(diameter, values[:, 3])


def test_wild_values_are_clamped():
    centre, diameter = decode([[9.0, -9.0, 0.0, 9.0], [0.0, 0.0, 0.0, -90.0]], [0.0, 0.0, 0.0], SIZE_MM)
    assert centre[0] == pytest.approx([7.5, -10.5, 0.0])
    assert diameter == pytest.approx([40.0, 2.0])


def test_patches_on_mapped_positions_start_at_whole_voxels():
    for cell in np.ndindex(5, 7, 6):
        index = tuple(float(v) for v in FCN_LATTICE.to_index(cell))
        start = patch_start(index)
        assert start == (cell[0] - 12, 2 * cell[1] - 30, 2 * cell[2] - 30)
        assert patch_centre(start).tolist() == list(index)


def test_patches_on_other_positions_are_at_most_half_a_voxel_off():
    rng = np.random.default_rng(0)
    for index in rng.uniform(0, 100, (50, 3)):
        assert np.abs(patch_centre(patch_start(tuple(index))) - index).max() <= 0.5

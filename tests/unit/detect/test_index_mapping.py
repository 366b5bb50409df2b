"""Where a score lies in the image (T1, T2 of the detector's test list)."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.detect.mapping import Lattice, derive
from pipeline.detect.nets.fcn import FCN
from pipeline.detect.nets.modern import ModernNet
from pipeline.detect.nets.residual import DEEPNET, RESNET, RESNET_HYBRID, ResidualNet
from pipeline.detect.screen import FCN_FIELD, FCN_LATTICE
from tests.unit.detect.scans import SMALL_FCN, lively


def test_the_paper_fcn_has_the_stride_field_and_half_voxel_offset_of_its_layers():
    lattice, field = derive(FCN.LAYERS)
    assert lattice == Lattice((1, 2, 2), (4.5, 14.5, 14.5))
    assert field == (10, 30, 30) == FCN.PATCH == FCN_FIELD
    assert FCN_LATTICE.offset_zyx == (-0.5, -0.5, -0.5)


def test_layers_declared_for_the_mapping_are_the_layers_of_the_network():
    net = FCN()
    own = [m for m in net.modules() if isinstance(m, nn.Conv3d | nn.MaxPool3d)]
    assert [tuple(m.kernel_size) for m in own] == [kernel for kernel, _ in FCN.LAYERS]
    assert [tuple(m.stride) for m in own] == [stride for _, stride in FCN.LAYERS]


def test_networks_have_the_parameters_of_the_layer_tables():
    def count(net: nn.Module) -> int:
        return sum(p.numel() for p in net.parameters())

    assert count(FCN()) == 1_834_058
    assert count(ResidualNet(RESNET_HYBRID)) == 6_985_830
    assert count(ResidualNet(RESNET)) == count(ResidualNet(DEEPNET)) == 6_985_830 - 2_048_644
    assert count(ModernNet()) == 5_921_085


@torch.inference_mode()
def test_dense_output_equals_the_output_patch_by_patch():
    net = lively(FCN(SMALL_FCN.widths))
    scan = torch.randn(1, 1, 13, 41, 38, generator=torch.Generator().manual_seed(1))
    dense = net(scan)
    assert dense.shape[2:] == tuple(
        (n - f) // s + 1 for n, f, s in zip((13, 41, 38), FCN_FIELD, (1, 2, 2), strict=True)
    )
    for k, j, i in np.ndindex(*dense.shape[2:]):
        patch = scan[:, :, k : k + 10, 2 * j : 2 * j + 30, 2 * i : 2 * i + 30]
        assert torch.allclose(net(patch)[0, :, 0, 0, 0], dense[0, :, k, j, i], atol=1e-5)


def test_a_score_sees_exactly_its_receptive_field_around_its_mapped_position():
    net = lively(FCN(SMALL_FCN.widths), seed=5)
    scan = torch.randn(1, 1, 16, 44, 44, generator=torch.Generator().manual_seed(2), requires_grad=True)
    net(scan)[0, 1, 3, 4, 5].backward()
    seen = np.argwhere(scan.grad[0, 0].numpy() != 0)
    assert seen.min(0).tolist() == [3, 8, 10]
    assert seen.max(0).tolist() == [12, 37, 39]
    lattice, _ = derive(FCN.LAYERS)
    assert lattice.to_index([3, 4, 5]).tolist() == ((seen.min(0) + seen.max(0)) / 2).tolist()


@pytest.mark.parametrize("seed", range(4))
@torch.inference_mode()
def test_symmetric_kernels_answer_a_blob_at_its_centre_within_a_hundredth_voxel(seed):
    net = FCN((2, 2, 2, 2)).eval()
    for module in net.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.fill_(1 / module.weight[0].numel())
    shape = (40, 100, 100)
    centre = np.array([20, 50, 50]) + np.random.default_rng(seed).uniform(-3, 3, 3)
    offsets = (np.indices(shape).transpose(1, 2, 3, 0) - centre) / np.array([2.0, 4.0, 4.0])
    blob = torch.tensor(np.exp(-(offsets**2).sum(-1) / 2), dtype=torch.float32)
    answer = net(blob[None, None])[0, 1].numpy()
    answer = np.where(answer > 0.02 * answer.max(), answer, 0.0)
    lattice, _ = derive(FCN.LAYERS)
    places = lattice.to_index(np.indices(answer.shape).transpose(1, 2, 3, 0))
    found = (places * answer[..., None]).sum((0, 1, 2)) / answer.sum()
    assert np.abs(found - centre).max() < 0.01


@torch.inference_mode()
def test_a_modern_cell_is_centred_on_its_first_voxel():
    net = ModernNet((2, 2, 2, 2, 2), 2).eval()
    shape = net(torch.zeros(1, 1, 32, 64, 96)).shape
    assert shape == (1, 5, 16, 16, 24)
    kernels = [m for m in net.modules() if isinstance(m, nn.Conv3d)]
    assert all(p == k // 2 for m in kernels for p, k in zip(m.padding, m.kernel_size, strict=True))
    assert all(k % 2 == 1 for m in kernels for k in m.kernel_size)


def test_lattice_goes_there_and_back():
    lattice = Lattice((1, 2, 2), (-0.5, 1.0, 2.5))
    cells = np.array([[0, 0, 0], [3, 4, 7]])
    assert np.array_equal(lattice.to_cell(lattice.to_index(cells)), cells)
    z, y, x = lattice.axes((2, 2, 3))
    assert (z.tolist(), y.tolist(), x.tolist()) == ([-0.5, 0.5], [1.0, 3.0], [2.5, 4.5, 6.5])

"""Our detector beside MONAI's, over the same voxels, on the same device, in the same run.

    python -m bench.bench_peers --peer-folder peer            a block of 80 x 384 x 384 voxels
    python -m bench.bench_peers --peer-folder peer --blocks 10   more of them

The peer is the network of MONAI's lung nodule bundle (RetinaNet, ResNet-50 with a feature pyramid, 20.9 million
parameters) with random weights: what it says means nothing, its work is the same. Ours is the shipped default with
both of its stages where it ships both, no file reading, nothing skipped by the lung mask. Both have one precision.

MONAI and torchvision are not among this project's dependencies: they are installed, without what they depend on,
into the folder named by ``--peer-folder``, which may be thrown away. torchvision's compiled operators do not fit a
CPU build of torch; none of them is needed here, so they are declared and left empty.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from pipeline.detect.detector import TwoStageDetector, load_detector
from pipeline.detect.resample import PREPROCESSING, Prepared
from pipeline.domain.geometry import Grid
from pipeline.lungs import LungMask

PACKAGES = ("monai==1.5.1", "torchvision==0.28.0")
BLOCK = (80, 192, 192)
"""Voxels z, y, x of a patch of MONAI's bundle."""

ANCHORS = 3
STEM_STRIDE = (2, 2, 1)
OPERATORS = (
    *("nms", "qnms", "qroi_align", "box_iou_rotated", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"),
    *("_roi_align_backward", "_roi_pool_backward", "_ps_roi_align_backward", "_ps_roi_pool_backward"),
    *("deform_conv2d", "_deform_conv2d_backward", "_cuda_version"),
)
"""What torchvision looks for while it is imported."""


def main() -> None:
    """Measure both in turns and print the ratio."""
    options = _options()
    torch.set_num_threads(options.threads)
    install(options.peer_folder)
    detector = load_detector(options.weights, device=options.device, precision=options.precision)
    place = detector.placement
    peer = make_peer(options.peer_folder).to(place.device, place.dtype)
    scan = made_scan(options.blocks)
    voxels = int(np.prod(scan.hu.shape))
    runs: dict[str, Callable[[], None]] = {
        "ours": lambda: ours(detector, scan),
        "MONAI": lambda: theirs(peer, scan, place),
    }
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for name, run in runs.items():
        for _ in range(options.warm + options.rounds):
            spent[name].append(timed(run, place.device))
    print(
        f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC, {psutil.cpu_count()} cores, load "
        f"{psutil.getloadavg()[0]:.1f}, {place.device}, {place.dtype}, {options.threads} threads, "
        f"{scan.hu.shape[0]} x {scan.hu.shape[1]} x {scan.hu.shape[2]} = {voxels / 1e6:.1f} million voxels"
    )
    best = {
        name: tuple(min(times) for times in zip(*values[options.warm :], strict=True))
        for name, values in spent.items()
    }
    for name, (wall, cpu) in best.items():
        print(f"  {name:6s} {wall:8.2f} s wall, {cpu:8.2f} s of CPU")
    print(f"  ratio  {best['MONAI'][0] / best['ours'][0]:8.1f}       {best['MONAI'][1] / best['ours'][1]:10.1f}")


def install(folder: Path) -> None:
    """Install the peer into a folder of its own, once."""
    if not (folder / "monai").is_dir():
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(folder),
            *PACKAGES,
        ]
        subprocess.run(command, check=True)


def make_peer(folder: Path) -> torch.nn.Module:
    """Make the bundle's network as its training script does, ready for inference."""
    library = torch.library.Library("torchvision", "DEF")
    for operator in OPERATORS:
        library.define(f"{operator}(Tensor x) -> Tensor")
    sys.path.append(str(folder))
    from monai.apps.detection.networks.retinanet_network import RetinaNet, resnet_fpn_feature_extractor
    from monai.networks.nets import resnet

    backbone = resnet.ResNet(
        block=resnet.ResNetBottleneck,
        layers=[3, 4, 6, 3],
        block_inplanes=resnet.get_inplanes(),
        n_input_channels=1,
        conv1_t_stride=STEM_STRIDE,
        conv1_t_size=[max(7, 2 * stride + 1) for stride in STEM_STRIDE],
    )
    features = resnet_fpn_feature_extractor(
        backbone=backbone,
        spatial_dims=3,
        pretrained_backbone=False,
        trainable_backbone_layers=None,
        returned_layers=[1, 2],
    )
    network: torch.nn.Module = RetinaNet(
        spatial_dims=3,
        num_classes=1,
        num_anchors=ANCHORS,
        feature_extractor=features,
        size_divisible=[stride * 2 * 2**2 for stride in STEM_STRIDE],
    )
    network._kept = library  # type: ignore[assignment]  # the declared operators live as long as this
    return network.eval().requires_grad_(requires_grad=False)


def made_scan(blocks: int) -> Prepared:
    """Make a box of lung-like noise, all of which is to be searched."""
    rng = np.random.default_rng(0)
    across = 1 if blocks < 4 else 2
    shape = (BLOCK[0] * max(blocks // across**2, 1), BLOCK[1] * across, BLOCK[2] * across)
    hu = (-800 + 100 * rng.standard_normal(shape)).astype(np.int16)
    mask = np.ones(shape, bool)
    lungs = LungMask(mask, mask, (1, 1, 1), shape, 5.0)
    grid = Grid(shape, PREPROCESSING.spacing_zyx_mm, (0.0, 0.0, 0.0))
    same = (1.0, 0.0)
    return Prepared(hu, grid, lungs, (same, same, same), PREPROCESSING)


def ours(detector: TwoStageDetector, scan: Prepared) -> None:
    """Both stages of the shipped detector."""
    candidates = detector._screening.candidates(scan, lambda _: None)
    detector._reduce(scan, candidates, lambda _: None)


@torch.inference_mode()
def theirs(peer: torch.nn.Module, scan: Prepared, place: Any) -> None:
    """The peer's network over the same voxels, block by block, without the overlap that its bundle adds."""
    whole = torch.from_numpy(scan.hu)
    for z in range(0, scan.hu.shape[0], BLOCK[0]):
        for y in range(0, scan.hu.shape[1], BLOCK[1]):
            for x in range(0, scan.hu.shape[2], BLOCK[2]):
                block = whole[z : z + BLOCK[0], y : y + BLOCK[1], x : x + BLOCK[2]].to(place.device)
                values = PREPROCESSING.normalise(block).permute(2, 1, 0)[None, None].to(place.dtype)
                peer(values.contiguous(memory_format=torch.channels_last_3d))


def timed(run: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """Give wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-folder", type=Path, default=Path("peer-out"))
    parser.add_argument(
        "--blocks",
        type=int,
        default=4,
        help="of 80 x 192 x 192 voxels; below 4 in one pile, else in piles of 2 x 2",
    )
    parser.add_argument("--weights", default="bundled")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=True) or 1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--warm", type=int, default=1, help="rounds before those that count")
    return parser.parse_args()


if __name__ == "__main__":
    main()

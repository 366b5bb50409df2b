"""Where the time of one scan goes, from DICOM files to findings, and what the machine could do at best.

    python -m bench.bench_detect                              the bundled weights on a made 300-slice series
    python -m bench.bench_detect --recipe paper               the paper's networks, random weights, 220 candidates
    python -m bench.bench_detect --series A --series B        given folders of DICOM instead
    python -m bench.bench_detect --scans 50 --series A        the same scan again and again: is memory flat?

Stage 1 stands beside the rate that its own convolutions reach alone on this machine in the same run, at the best of
several tile shapes. CPU seconds stand beside wall seconds, because other work on the machine stretches the latter.
"""

from __future__ import annotations

import argparse
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import nn

from pipeline.analysis import analyse_path
from pipeline.detect import screen
from pipeline.detect.detector import TwoStageDetector, load_detector
from pipeline.detect.nets.fcn import FCN
from pipeline.detect.nets.residual import RESNET_HYBRID, ResidualNet
from pipeline.detect.placement import choose
from pipeline.detect.resample import PREPROCESSING
from pipeline.detect.weights import (
    FCN_SCREENING,
    Calibration,
    Card,
    CardOperatingPoint,
    ReductionSpec,
    Weights,
)
from pipeline.domain.finding import Detection
from pipeline.domain.limits import SelectionLimits
from pipeline.domain.outcome import Refusal
from pipeline.domain.volume import Volume
from training.anatomy import draw_build
from training.phantom import MARGIN_ABOVE_MM, MARGIN_BELOW_MM, draw_settings, make_phantom
from training.phantom_files import write_series

SLICES = 300
SEED = 10007
CANDIDATES = 220
STEPS = ("read", "decode", "assemble", "lungs", "resample", "screening", "suppression", "reduction", "total")
TILES = ((64, 128, 128), (96, 160, 160), (112, 192, 256), (96, 288, 448))
FCN_CORES = ((16, 32, 32), (32, 32, 32), (32, 64, 64))


@dataclass(slots=True)
class Spent:
    """Seconds of each step of one scan, and the multiplications of the first stage."""

    wall: dict[str, float] = field(default_factory=dict)
    cpu_s: float = 0.0
    gmac: float = 0.0
    findings: int = 0
    candidates: int = 0


class Watched:
    """The product's detector, whose last answer is kept."""

    def __init__(self, detector: TwoStageDetector) -> None:
        self.detector = detector
        self.model, self.operating_points = detector.model, detector.operating_points
        self.last: Detection | None = None

    def detect(self, volume: Volume, progress: Callable[[str, float], None] | None = None) -> Detection | Refusal:
        """Detect, and keep the answer with its timings."""
        found = self.detector.detect(volume, progress)
        self.last = found if isinstance(found, Detection) else None
        return found


class RankedFCN(screen.FCNScreening):
    """The paper's first stage with random weights: its best scores count as candidates, whatever their value."""

    def scores(self, scan: Any, progress: Any) -> Any:
        """Score, then set the floor so that about ten times the candidates wanted exceed it."""
        scores = super().scores(scan, progress)
        floor = float(np.quantile(scores[scores >= 0], 1 - min(0.5, 40 * CANDIDATES / max((scores >= 0).sum(), 1))))
        self._spec = replace(self._spec, floor=floor, cap=CANDIDATES)
        return scores


def main() -> None:
    """Measure and print."""
    options = _options()
    torch.set_num_threads(options.threads)
    detector = _paper(options) if options.recipe == "paper" else _shipped(options)
    watched = Watched(detector)
    with tempfile.TemporaryDirectory() as folder:
        series = options.series or [_made(Path(folder), options.slices)]
        print(_machine(detector, options))
        for path in series:
            spent = [one_scan(path, watched) for _ in range(options.scans)]
            _report(path, spent, detector)
    if not options.no_bare:
        _compare(detector, spent[-1])


def one_scan(path: Path, detector: Watched) -> Spent:
    """Take one series from files to findings."""
    spent = Spent()
    with _counted(detector.detector, spent):
        wall, cpu = time.perf_counter(), time.process_time()
        analysis = analyse_path(path, detector, SelectionLimits(), operating_point="default")
        spent.wall["total"], spent.cpu_s = time.perf_counter() - wall, time.process_time() - cpu
    if detector.last is None:
        raise SystemExit(f"{path} was not analysed: {analysis.reason}")
    steps = analysis.timings_s | detector.last.timings_s
    steps["screening"] -= spent.wall.get("suppression", 0.0)
    spent.wall |= {name: steps[name] for name in STEPS if name in steps}
    spent.findings, spent.candidates = len(analysis.findings), len(detector.last.candidates)
    return spent


@contextmanager
def _counted(detector: TwoStageDetector, spent: Spent) -> Iterator[None]:
    """Time the suppression apart, and count the multiplications of the first stage's convolutions."""
    kept = {name: getattr(screen, name) for name in ("local_maxima", "suppress", "rank", "linear")}

    def timed(name: str) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            begin = time.perf_counter()
            answer = kept[name](*given)
            spent.wall["suppression"] = spent.wall.get("suppression", 0.0) + time.perf_counter() - begin
            return answer

        return call

    def linear(x: torch.Tensor, weight: torch.Tensor, bias: Any) -> torch.Tensor:
        spent.gmac += x.shape[0] * weight.numel() / 1e9
        return torch.as_tensor(kept["linear"](x, weight, bias))

    def count(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        spent.gmac += output.numel() * layer.weight[0].numel() / 1e9  # type: ignore[index,union-attr,operator]

    net = detector._screening._net  # type: ignore[attr-defined]
    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv3d)]
    for name in ("local_maxima", "suppress", "rank"):
        setattr(screen, name, timed(name))
    screen.linear = linear  # type: ignore[assignment]
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(screen, name, value)
        for hook in hooks:
            hook.remove()


def bare_rate(detector: TwoStageDetector) -> tuple[tuple[int, ...], float]:
    """Find the rate of the first stage's convolutions alone: best tile shape, and GMAC a second there."""
    net, placement = detector._screening._net, detector.placement  # type: ignore[attr-defined]
    shapes: list[tuple[int, ...]] = list(TILES)
    if isinstance(net, FCN):
        shapes = [
            tuple((c - 1) * s + f for c, s, f in zip(core, (1, 2, 2), FCN.PATCH, strict=True)) for core in FCN_CORES
        ]
    rates = {shape: _rate_at(net, shape, placement) for shape in shapes}
    best = max(rates, key=lambda shape: rates[shape])
    return best, rates[best]


@torch.inference_mode()
def _rate_at(net: nn.Module, shape: tuple[int, ...], placement: Any) -> float:
    """Run every convolution of a network on inputs of the sizes it has in one tile, and nothing else."""
    inputs: list[tuple[nn.Conv3d, torch.Size, float]] = []

    def note(layer: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        assert isinstance(layer, nn.Conv3d)
        inputs.append((layer, given[0].shape, output.numel() * layer.weight[0].numel() / 1e9))

    hooks = [m.register_forward_hook(note) for m in net.modules() if isinstance(m, nn.Conv3d)]
    x = torch.zeros((1, 1, *shape), dtype=placement.dtype, device=placement.device)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    net.shared(x) if isinstance(net, FCN) else net.features(x)  # type: ignore[operator]
    for hook in hooks:
        hook.remove()
    seconds = 0.0
    for layer, size, _ in inputs:
        given = torch.randn(size, device=placement.device).to(placement.dtype)
        given = given.contiguous(memory_format=torch.channels_last_3d)
        seconds += min(_timed(layer, given) for _ in range(3))
    return sum(gmac for _, _, gmac in inputs) / seconds


def _timed(layer: nn.Module, given: torch.Tensor) -> float:
    begin = time.perf_counter()
    layer(given)
    if given.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _shipped(options: argparse.Namespace) -> TwoStageDetector:
    return load_detector(
        options.weights, device=options.device, precision=options.precision, threads=options.threads
    )


def _paper(options: argparse.Namespace) -> TwoStageDetector:
    """Make the paper's two networks with random weights; what they say means nothing, the work is the same."""
    torch.manual_seed(0)
    first, second = FCN().eval(), ResidualNet().eval()
    card = Card(
        name="random",
        version="0",
        recipe="paper",
        preprocessing=PREPROCESSING,
        screening=FCN_SCREENING,
        reduction=ReductionSpec(RESNET_HYBRID),
        calibration=Calibration(0.0, 1.0, 0.0),
        operating_points=(CardOperatingPoint("none", 0.5, 1.0, 0.0, "none"),),
        training_data=(),
        seed=0,
        code_version="0",
    )
    placement = choose(options.device, options.precision)
    detector = TwoStageDetector(Weights(card, "0" * 64, first, second), placement, SelectionLimits())
    detector._screening = RankedFCN(first, FCN_SCREENING, placement)
    return detector


def _made(folder: Path, slices: int) -> Path:
    """Write a digital chest with as many slices of 512 x 512 as asked for."""
    height = draw_build(np.random.default_rng([SEED, 2])).height + MARGIN_ABOVE_MM + MARGIN_BELOW_MM
    distance = height / (slices - 0.5)
    settings = replace(draw_settings(SEED), slice_distance_mm=distance, thickness_mm=max(distance, 1.0))
    made = make_phantom(SEED, settings)
    write_series(made, folder / "series")
    return folder / "series"


def _machine(detector: TwoStageDetector, options: argparse.Namespace) -> str:
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    place = detector.placement
    device = (
        torch.cuda.get_device_name(place.device) if place.device.type == "cuda" else f"{options.threads} threads"
    )
    load = psutil.getloadavg()[0]
    now = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    return (
        f"{now} UTC, {name}, {psutil.cpu_count()} cores, load {load:.1f}; "
        f"{device}, {place.dtype}, torch {torch.__version__}, {detector.model.recipe}"
    )


def _report(path: Path, scans: list[Spent], detector: TwoStageDetector) -> None:
    last, threads = scans[-1], torch.get_num_threads()
    steps = ", ".join(f"{name} {last.wall[name]:.2f}" for name in STEPS if name in last.wall)
    print(f"{path.name}: {steps} s wall; {last.cpu_s:.1f} s of CPU, {last.cpu_s / threads:.1f} s a thread")
    print(f"  {last.candidates} candidates, {last.findings} findings, stage 1 {last.gmac:,.0f} GMAC")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    memory = f"  peak host memory {peak:,.0f} MiB"
    if detector.placement.device.type == "cuda":
        memory += f", device {torch.cuda.max_memory_allocated() / 2**20:,.0f} MiB"
    print(memory)
    if len(scans) > 1:
        print(f"  after {len(scans)} scans {psutil.Process().memory_info().rss / 2**20:,.0f} MiB in use")


def _compare(detector: TwoStageDetector, spent: Spent) -> None:
    shape, rate = bare_rate(detector)
    own = spent.gmac / spent.wall["screening"]
    print(
        f"stage 1 {2 * own:,.0f} GFLOP/s; its convolutions alone {2 * rate:,.0f} (best tile {shape}): "
        f"{100 * own / rate:.0f} %"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=Path, action="append", help="folder of DICOM or .mhd; may be repeated")
    parser.add_argument("--slices", type=int, default=SLICES, help="of the made series")
    parser.add_argument("--scans", type=int, default=1, help="how often each series is taken")
    parser.add_argument("--recipe", choices=("shipped", "paper"), default="shipped")
    parser.add_argument("--weights", default="bundled")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=True) or 1)
    parser.add_argument("--no-bare", action="store_true", help="leave out the convolutions alone")
    return parser.parse_args()


if __name__ == "__main__":
    main()

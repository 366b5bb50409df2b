"""Samples a second of a training run, beside those from data that already lies in the device's memory.

    python -m bench.bench_training paper --scans prepared
    python -m bench.bench_training paper-fast --device cuda --workers 4

Both run the same step (forward, loss, backward, optimiser) on the same device in turns; the ratio says how much of
the time the network waits for its data. Without ``--scans`` small made-up scans are used.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.feed import PatchSource, feed, patches
from training.insertion import Look
from training.recipes import Recipe, load_recipe
from training.runs import make_optimiser
from training.sampling import PatchSampler
from training.scans import TrainingScan, save_scan
from training.screening import CropMaker, make_network, step_of
from training.team import gathered

RECIPES = Path(__file__).parents[1] / "config" / "recipes"
KEPT = 4
"""Batches that lie in memory for the comparison."""


def main() -> None:
    """Run the comparison and print it."""
    options = _options()
    recipe = load_recipe(RECIPES / f"{options.recipe}.toml")
    if options.batch:
        recipe = replace(recipe, screening=replace(recipe.screening, batch=options.batch))
    torch.set_num_threads(recipe.threads)
    torch.backends.cudnn.benchmark = True
    with tempfile.TemporaryDirectory() as folder, gathered(options.device) as team:
        scans = options.scans or _made_up(Path(folder))
        source = batches(recipe, scans, team.device, options.workers)
        kept = list(islice(source, KEPT))
        timed = Timed(recipe, team)
        timed.run(iter(kept), 2)
        rates: dict[str, list[float]] = {"from memory": [], "from the sampler": []}
        for _ in range(options.rounds):
            rates["from memory"].append(timed.run(cycle(kept), options.steps))
            list(islice(source, options.warm))  # empties what was made ahead while the other ran
            rates["from the sampler"].append(timed.run(source, options.steps))
        source.close()
        middle = {name: float(np.median(values)) for name, values in rates.items()}
        print(
            f"{options.recipe}, stage 1, batch {recipe.screening.batch}, {team.device}, {options.workers} workers"
        )
        for name, value in middle.items():
            print(f"  {name:16s} {value:10.1f} samples/s  ({', '.join(f'{v:.1f}' for v in rates[name])})")
        print(f"  ratio            {middle['from the sampler'] / middle['from memory']:10.2f}")


def batches(recipe: Recipe, scans: Path, device: torch.device, workers: int) -> Iterator[Any]:
    """Give the batches of a recipe's first stage as its training does."""
    stage, whole = recipe.screening, slice(0, recipe.screening.batch)
    if stage.network == "fcn":
        sampler = partial(PatchSampler, shape=stage.patch, seed=recipe.seed)
        source = PatchSource(scans, (), sampler, stage.batch, whole, stage.patch, recipe.seed, recipe.resident)
        return patches(source, device, 0, workers)
    crops = feed(partial(CropMaker, recipe, scans, (), whole), 0, workers)
    return (tuple(t.to(device, non_blocking=True) for t in batch) for batch in crops)


class Timed:
    """Times steps of training on given batches."""

    def __init__(self, recipe: Recipe, team: Any) -> None:
        self.recipe, self.team = recipe, team
        network = make_network(recipe.screening).to(team.device, memory_format=torch.channels_last_3d)
        self.network = network.train()
        self.optimiser = make_optimiser(recipe.screening, network)

    def run(self, source: Iterator[Any], steps: int) -> float:
        """Give samples a second over some steps."""
        learn = step_of(self.recipe, self.team, source)
        self._wait()
        begin = time.perf_counter()
        for number in range(steps):
            loss, _ = learn(self.network, number)
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
        self._wait()
        return steps * self.recipe.screening.batch / (time.perf_counter() - begin)

    def _wait(self) -> None:
        if self.team.device.type == "cuda":
            torch.cuda.synchronize()


def _made_up(folder: Path) -> Path:
    """Write two scans of noise with a nodule: the work of cutting does not depend on what is in them."""
    rng = np.random.default_rng(0)
    for number in (1, 2):
        hu = (-850 + 40 * rng.standard_normal((200, 320, 400))).astype(np.int16)
        places = np.stack([rng.integers(10, n - 10, 500) for n in hu.shape], 1).astype(np.int16)
        look = Look((0.6, 0.6, 0.6), 20.0, (0.5, 0.6, 0.6))
        scan = TrainingScan(
            name=f"phantom-{number}",
            hu=hu,
            slice_distance_mm=1.25,
            look=look,
            nodules=np.array([[60.0, 100.0, 100.0, 8.0], [120.0, 200.0, 300.0, 6.0]]),
            ignored=np.empty((0, 4)),
            mimics=np.array([[90.0, 80.0, 90.0]]),
            places=dict.fromkeys(("free", "pleura", "vessel", "any"), places),
        )
        save_scan(scan, folder)
    return folder


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="modern, paper, paper-fast or ablation")
    parser.add_argument("--scans", type=Path, help="folder of prepared scans; else two are made up")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm", type=int, default=8, help="batches thrown away before the sampler is timed")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()

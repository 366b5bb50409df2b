"""A LUNA16 download into the training cache: every scan resampled once, in parallel, restartable.

What a scan becomes is `scans.py`; what is wrong with a download, `download.py`.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING

from pipeline.domain.outcome import Refusal
from pipeline.reading import read_metaimage
from training import luna16
from training.scans import LEAST_LUNG_L, Truth, prepare_scan, save_scan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from training.download import Download, DownloadedScan
    from training.froc import Annotation

BLUR_MM = 0.6
CACHE_CARD = "data.json"


@dataclass(frozen=True, slots=True)
class CacheCard:
    """What a training cache was made from: name of the data, whether simulated, number of subsets."""

    data_set: str
    simulated: bool
    subsets: int


def read_cache_card(cache: Path) -> CacheCard:
    """Read what :func:`prepare_download` wrote; a cache made from single folders has their folder's name."""
    path = cache / CACHE_CARD
    if not path.is_file():
        return CacheCard(cache.resolve().name, simulated=any(cache.glob("phantom-*.npz")), subsets=0)
    return CacheCard(**json.loads(path.read_text(encoding="ascii")))


@dataclass(frozen=True, slots=True)
class Cached:
    """What became of one scan: its UID, nodules, and why it could not be used (empty where it could)."""

    uid: str
    nodules: int
    fault: str


def prepare_download(
    download: Download, out: Path, data_set: str, workers: int = 1
) -> Iterator[tuple[int, int, Cached]]:
    """Prepare the scans that are not in the cache yet.

    Parameters
    ----------
    download
        As checked.
    out
        The cache: a ``.npz`` for each scan, named by its series UID.
    data_set
        Name of the data, kept with the cache.
    workers
        Processes.

    Yields
    ------
    tuple
        How many scans are done, how many there are, and what became of the last one.
    """
    out.mkdir(parents=True, exist_ok=True)
    card = CacheCard(data_set, download.simulated, len(download.subsets))
    luna16.write_text(out / CACHE_CARD, json.dumps(asdict(card), indent=1) + "\n")
    left = [scan for scan in download.scans if not (out / f"{scan.uid}.npz").exists()]
    done, total = len(download.scans) - len(left), len(download.scans)
    if done:
        yield done, total, Cached("scans that were there", 0, "")
    for cached in _prepared(left, download, out, workers):
        done += 1
        yield done, total, cached


def _prepared(scans: Sequence[DownloadedScan], download: Download, out: Path, workers: int) -> Iterator[Cached]:
    tasks = [(s, download.included.get(s.uid, []), download.excluded.get(s.uid, []), out) for s in scans]
    if workers <= 1:
        for task in tasks:
            yield prepare_one(*task)
        return
    with ProcessPoolExecutor(min(workers, max(len(tasks), 1)), get_context("spawn")) as pool:
        futures = [pool.submit(prepare_one, *task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def prepare_one(
    scan: DownloadedScan, included: Sequence[Annotation], excluded: Sequence[Annotation], out: Path
) -> Cached:
    """Read, resample and keep one scan."""
    volume = read_metaimage(scan.path)
    if isinstance(volume, Refusal):
        return Cached(scan.uid, 0, f"{scan.path}: {volume.text}")
    truth = Truth(
        nodules=tuple((a.position_mm, a.diameter_mm) for a in included),
        ignored=tuple((a.position_mm, a.diameter_mm) for a in excluded),
    )
    made = prepare_scan(
        scan.uid,
        volume.hu,
        volume.grid,
        truth,
        BLUR_MM,
        person=scan.person,
        subset=scan.subset,
        least_lung_l=LEAST_LUNG_L,
    )
    if isinstance(made, Refusal):
        return Cached(scan.uid, 0, f"{scan.path}: {made.text}")
    save_scan(made, out)
    return Cached(scan.uid, len(made.nodules), "")

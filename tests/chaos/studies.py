"""The studies of a round: small chests, each with pixels of its own, some of them sent in two parts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import count
from random import Random
from typing import TYPE_CHECKING

from tests.builders import ChestSeries, Sphere, uid_of
from tests.raw_sender import raw

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.raw_sender import RawObject

SMALL = ChestSeries(slices=24, rows=64, columns=64, pixel_mm=2.4, slice_step=5.0, thickness=5.0)
LATE_SLICES = 4
LATE = 0.2
"""How many of the studies get their last slices later than the others."""

SELECTION = """\
[selection]
min_rows = 32
max_pixel_mm = 8.0
warn_pixel_mm = 8.0
max_thickness_mm = 5.0
warn_thickness_mm = 5.0
max_spacing_mm = 5.0
min_slices = 20
min_coverage_mm = 60.0
warn_coverage_mm = 90.0
min_lung_l = 0.05
"""


@dataclass(frozen=True)
class Study:
    """One study and how it is sent.

    With ``late_s`` its last slices follow so many seconds after the others; ``acknowledged`` holds the images that
    were answered with Success.
    """

    series: ChestSeries
    late_s: float | None
    acknowledged: set[str] = field(default_factory=set)

    @property
    def uid(self) -> str:
        return self.series.study_uid

    @property
    def images(self) -> set[str]:
        return {uid_of("instance", self.series.name, number) for number in range(self.series.slices)}

    def parts(self) -> Iterator[tuple[RawObject, ...]]:
        """What is sent, in the parts that follow one another; made anew each time."""
        images = tuple(raw(dataset) for dataset in self.series.datasets())
        if self.late_s is None:
            yield images
        else:
            yield images[:-LATE_SLICES]
            yield images[-LATE_SLICES:]


def studies_of(name: str, seed: int) -> Iterator[Study]:
    """The studies of a seed, without end; the same name and seed give the same bytes."""
    rng = Random(seed)
    for number in count():
        side = rng.choice((-1, 1))
        centre = side * rng.uniform(24, 34), rng.uniform(-20, 20), rng.uniform(-30, 30)
        series = replace(
            SMALL,
            name=f"{name} {number}",
            nodules=(Sphere(centre, rng.uniform(8, 14)),),
            seed=rng.randrange(2**31),
        )
        yield Study(series, rng.choice((3.0, 8.0, 20.0)) if rng.random() < LATE else None)

"""The pipeline's one seam: whoever finds nodules in a volume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.domain.finding import Detection, ModelIdentity, OperatingPoint
    from pipeline.domain.outcome import Refusal
    from pipeline.domain.volume import Volume

    Progress = Callable[[str, float], None]
    """Called with the step's name and the part of it that is done, in [0, 1]."""


class Detector(Protocol):
    """Volume to findings: the two-stage network, or a scripted one for tests."""

    @property
    def model(self) -> ModelIdentity:
        """The weights in use."""

    @property
    def operating_points(self) -> tuple[OperatingPoint, ...]:
        """The operating points of the weights' card, the default one first."""

    def detect(self, volume: Volume, progress: Progress | None = None) -> Detection | Refusal:
        """Find nodules, or say why there can be no answer (no lungs, implausible values)."""

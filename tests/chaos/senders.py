"""Modalities: they send studies image by image, and again whatever was not answered with Success."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from scp_node.network.library import send_encoded
from tests.raw_sender import association

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pynetdicom.association import Association

    from tests.chaos.studies import Study
    from tests.raw_sender import RawObject

SUCCESS = 0x0000
AGAIN_S = 0.3


@dataclass
class Modality:
    """Sends its studies one after another, on a thread of its own.

    ``may_begin`` says whether one more study may be on its way; ``sending`` names the study whose images are going
    out on an open association at this moment.
    """

    title: str
    port: int
    studies: Iterable[Study]
    may_begin: Callable[[], bool]
    seed: int = 0
    sending: str | None = None
    begun: list[str] = field(default_factory=list)
    done: bool = False
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Send everything, or as much as there is time for until ``stopped``."""
        rng = Random(self.seed)
        for study in self.studies:
            while not self.may_begin():
                if self.stopped.wait(0.05):
                    return
            self.begun.append(study.uid)
            for number, part in enumerate(study.parts()):
                if number and self.stopped.wait(study.late_s):
                    return
                self._send(study, part, rng.choice((0.0, 0.02, 0.06)))
        self.done = True

    def _send(self, study: Study, part: Sequence[RawObject], pause_s: float) -> None:
        """Send a part until each of its images is acknowledged."""
        while left := [image for image in part if image.sop_instance_uid not in study.acknowledged]:
            with suppress(OSError, RuntimeError), association(self.port, left, calling=self.title) as opened:
                self.sending = study.uid if opened.is_established else None
                self._on(opened, study, left if opened.is_established else (), pause_s)
            self.sending = None
            if self.stopped.wait(AGAIN_S):
                return

    def _on(self, opened: Association, study: Study, images: Sequence[RawObject], pause_s: float) -> None:
        for image in images:
            ids = image.sop_class_uid, image.sop_instance_uid
            if send_encoded(opened, opened.accepted_contexts[0], *ids, image.dataset) != SUCCESS:
                return
            study.acknowledged.add(image.sop_instance_uid)
            if self.stopped.wait(pause_s):
                return

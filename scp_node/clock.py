"""The machine's clock, as the port :class:`scp_node.ports.Clock` wants it."""

from __future__ import annotations

import time


class SystemClock:
    """Time of the operating system."""

    def now(self) -> float:
        """Seconds since the epoch, UTC."""
        return time.time()

"""What integration tests share: a simulator that says nothing."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import structlog

from tests.simulator.history import silence

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def quiet_simulator() -> Iterator[None]:
    """Let the node's log go nowhere, and give it back."""
    silence()
    yield
    logging.disable(logging.NOTSET)
    structlog.reset_defaults()

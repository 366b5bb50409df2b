"""The workflow engine's own log: cancelled runs are expected and take one line, everything else stays an alarm."""

from __future__ import annotations

import logging
import sys

import pytest
from dbos import error as engine_error

from scp_node.children import RunCancelledError
from scp_node.workflow import _ExpectedCancellations


def logged(fault: BaseException) -> logging.LogRecord:
    """What the engine writes of a fault in a step."""
    try:
        raise fault
    except BaseException:  # noqa: BLE001 - the traceback is the subject, and the engine's kind is no Exception
        record = logging.LogRecord("dbos", logging.ERROR, "x.py", 1, "Exception in workflow", (), sys.exc_info())
    assert _ExpectedCancellations().filter(record)
    return record


@pytest.mark.parametrize(
    "fault", [RunCancelledError("cancelled"), engine_error.DBOSWorkflowCancelledError("cancelled")]
)
def test_a_run_that_was_cancelled_is_a_line_at_info_without_a_traceback(fault):
    record = logged(fault)
    assert (record.levelno, record.levelname, record.exc_info) == (logging.INFO, "INFO", None)


def test_any_other_fault_stays_an_error_with_its_traceback():
    record = logged(ValueError("a bug"))
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None

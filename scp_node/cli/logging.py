"""Logging of every process: structlog over the standard library, so that libraries' logs take the same way.

One processor keeps patient data out, whoever logs: see :func:`drop_patient_data`.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping
    from typing import TextIO

    from structlog.typing import EventDict, ExcInfo, Processor

    from scp_node.settings import Settings

_TEXT_LIMIT = 1024
_PATIENT_KEY = re.compile(r"patient|birth|issuerofpatient|personname|medicalrecord")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_DICOM_LIBRARIES = {"pydicom", "highdicom", "pynetdicom"}
_QUIET = {
    "pynetdicom": logging.ERROR,
    "pydicom": logging.CRITICAL,
    "dbos": logging.WARNING,
    "alembic": logging.WARNING,
}


def configure_logging(settings: Settings, process_name: str, stream: TextIO | None = None) -> None:
    """Send this process's logs to ``stream`` (default: stderr) as ``[log]`` says; once, at the start."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _ProcessName(process_name),
        structlog.processors.ExceptionRenderer(describe_exception),
        drop_patient_data,
        escape_texts,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _renderer(settings.log.format)],
            foreign_pre_chain=shared,
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log.level.upper())
    for library, level in _QUIET.items():
        logging.getLogger(library).setLevel(level)
    # pydicom's warnings quote values of the data set, which may be a patient's name.
    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")


def log_warnings(settings: Settings) -> None:
    """Say at start what the settings allow but probably do not mean."""
    logger = structlog.get_logger()
    for sentence in settings.warnings():
        logger.warning(sentence, settings=str(settings.path))


def drop_patient_data(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Take out fields named after patient attributes and values that are DICOM objects, at any depth."""
    return _without_patient(event)


def describe_exception(exc_info: ExcInfo) -> str:
    """Give the traceback; the message is left out where a library that reads DICOM had a hand in it.

    Such libraries quote values of the data set, which may be a patient's name.
    """
    fault: BaseException | None = exc_info[1]
    parts: list[str] = []
    while fault is not None:
        text = "".join(traceback.format_tb(fault.__traceback__))
        parts.append(f"{text}{type(fault).__name__}: {_message(fault)}")
        fault = fault.__cause__ or (None if fault.__suppress_context__ else fault.__context__)
    return "\n\nbefore that:\n\n".join(parts)


def _message(fault: BaseException) -> str:
    frames = traceback.extract_tb(fault.__traceback__)
    quotes = any(_DICOM_LIBRARIES.intersection(Path(frame.filename).parts) for frame in frames)
    return "(message not logged)" if quotes else str(fault)


def escape_texts(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Make control characters visible, so that no peer can write log lines of its own, and cut long texts."""
    for key, value in event.items():
        if isinstance(value, str) and key != "exception":
            event[key] = _CONTROL.sub(lambda found: repr(found.group())[1:-1], value.replace("\n", "\\n"))[
                :_TEXT_LIMIT
            ]
    return event


def _without_patient(fields: Mapping[str, Any]) -> MutableMapping[str, Any]:
    return {name: _clean(value) for name, value in fields.items() if not _names_patient(name)}


def _names_patient(name: str) -> bool:
    return _PATIENT_KEY.search(re.sub(r"[^a-z]", "", str(name).lower())) is not None


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return _without_patient(value)
    if type(value).__module__.partition(".")[0] in {"pydicom", "highdicom"} and not isinstance(value, str):
        return f"({type(value).__name__} not logged)"
    return value


class _ProcessName:
    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, _logger: Any, _method: str, event: EventDict) -> EventDict:
        event.setdefault("process", self._name)
        return event


def _renderer(log_format: str) -> Processor:
    if log_format == "json":
        return structlog.processors.JSONRenderer(default=str)
    return structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0, sort_keys=False)

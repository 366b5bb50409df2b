"""The DICOM Conformance Statement of this node as it is set up, in the structure of PS3.2 Annex A.

What is accepted is not written down here but asked of the rule that the listener works by
(:mod:`scp_node.network.registry`); a test proposes everything to a running listener and compares.
"""

from __future__ import annotations

from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from jinja2 import Environment, StrictUndefined

from scp_node.implementation import IMPLEMENTATION_UID, IMPLEMENTATION_VERSION
from scp_node.network.registry import accepted_contexts, preferred, transfer_syntaxes
from scp_node.ports import STORAGE_COMMITMENT, STUDY_ROOT_FIND
from scp_node.receive import CT_CLASSES, Answer
from sr_writer.record import SOP_CLASS_UIDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scp_node.network.registry import Accepted
    from scp_node.settings import Destination, Settings

    Row = tuple[str, ...]

_TEMPLATE: Final = "conformance_statement.md.jinja"
_SR_NAMES: Final = {"comprehensive3d": "Comprehensive 3D SR Storage", "comprehensive": "Comprehensive SR Storage"}
_LITTLE_ENDIAN: Final = (
    "Explicit VR Little Endian `1.2.840.10008.1.2.1`, Implicit VR Little Endian `1.2.840.10008.1.2`"
)
_REJECTIONS: Final = (
    ("called AE title is not ours", "1/1/7"),
    ("calling AE title, its address or its certificate is not as configured", "1/1/3"),
    ("application context is not DICOM's", "1/1/2"),
    ("too many associations", "2/3/2"),
    ("disk below its limit (storage asked for), or shutting down", "2/3/1"),
)
_ANSWERS: Final = (
    ("0x0000, 0x0111, 0xBxxx", "stored; proof follows where the archive offers it"),
    ("0xA7xx, none in time, no connection", "sent again later, with growing pauses"),
    ("0x0122 for Comprehensive 3D SR", "Comprehensive SR is sent instead, where it is taken"),
    ("0x0117, 0x0122, 0x0124, 0xA9xx, 0xCxxx", "given up, visibly"),
    ("others", "sent again later"),
)


def statement(settings: Settings) -> str:
    """Write the statement, as Markdown."""
    accepted = accepted_contexts()
    every = transfer_syntaxes()
    values: dict[str, Any] = {
        "version": version("nodule-node"),
        "node": settings.node,
        "network": settings.network,
        "study": settings.study,
        "tls": settings.tls,
        "table": _table,
        "overview": _overview(accepted),
        "general": _general(settings),
        "rejections": _REJECTIONS,
        "senders": _senders(settings) or [("nobody", "", "")],
        "classes": [
            (found.sop_class.name, f"`{found.sop_class.uid}`", _use(found))
            for found in accepted
            if found.transfer_syntaxes == every
        ],
        "syntaxes": _syntaxes(),
        "others": [
            (found.sop_class.name, f"`{found.sop_class.uid}`", f"`{syntax.uid}`")
            for found in accepted
            if found.transfer_syntaxes != every
            for syntax in found.transfer_syntaxes
        ],
        "other_objects": "kept too" if settings.storage.other_objects == "keep" else "noted, but not kept",
        "statuses": [(f"0x{answer.status:04X}", answer.comment or "none", answer.advice) for answer in Answer],
        "proposed": [row for place in settings.destinations for row in _proposed(place)] or [("none", *[""] * 4)],
        "answers": _ANSWERS,
        "ports": list(_ports(settings)),
    }
    template = files("scp_node").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(template).render(values)


def _overview(accepted: Sequence[Accepted]) -> list[Row]:
    stored = sum(found.stored for found in accepted)
    return [
        (f"Storage, {stored} classes (4.2.1.3.1)", "no", "yes"),
        ("Verification", "yes", "yes"),
        *((f"{name}, results", "yes", "yes") for name in _SR_NAMES.values()),
        ("Storage Commitment Push Model", "yes", "no"),
        ("Study Root Query/Retrieve Information Model - FIND", "yes", "no"),
    ]


def _general(settings: Settings) -> list[Row]:
    node, network = settings.node, settings.network
    return [
        ("Application context", "1.2.840.10008.3.1.1.1"),
        ("Implementation Class UID", IMPLEMENTATION_UID),
        ("Implementation Version Name", IMPLEMENTATION_VERSION),
        ("Largest PDU received", f"{node.max_pdu} bytes"),
        ("Associations at the same time", str(node.max_associations)),
        ("Asynchronous operations", "not supported"),
        ("Time for an association request", f"{network.acse_timeout_s:g} s"),
        ("Time without a message", f"{network.idle_timeout_s:g} s"),
        ("Largest object", f"{network.max_object_mib} MiB"),
    ]


def _senders(settings: Settings) -> list[Row]:
    tls = {"True": "required", "False": "no", "optional": "possible"}
    return [(sender.ae_title, sender.host or "anywhere", tls[str(sender.tls)]) for sender in settings.senders]


def _use(found: Accepted) -> str:
    return "analysed" if found.sop_class.uid in CT_CLASSES else "stored"


def _syntaxes() -> list[Row]:
    places = {uid: str(place) for place, uid in enumerate(preferred(), 1)}
    return [
        (syntax.name, f"`{syntax.uid}`", places.get(syntax.uid, "after those")) for syntax in transfer_syntaxes()
    ]


def _proposed(place: Destination) -> Iterator[Row]:
    where = f"{place.name}: {place.ae_title}, {place.host}:{place.port}"
    yield where, _SR_NAMES[place.sr], f"`{SOP_CLASS_UIDS[place.sr]}`", _LITTLE_ENDIAN, "SCU"
    if place.verify in {"auto", "commitment"}:
        yield where, "Storage Commitment Push Model", f"`{STORAGE_COMMITMENT}`", _LITTLE_ENDIAN, "SCU"
    if place.verify in {"auto", "query"}:
        yield where, "Study Root Query/Retrieve - FIND", f"`{STUDY_ROOT_FIND}`", _LITTLE_ENDIAN, "SCU"


def _ports(settings: Settings) -> Iterator[Row]:
    node, tls = settings.node, settings.tls
    if tls.plain:
        yield node.bind, str(node.port), "none"
    if tls.port:
        yield node.bind, str(tls.port), "TLS 1.2 and 1.3, certificates of both sides"


def _table(head: Row, rows: Sequence[Row]) -> str:
    lines = [head, *rows]
    cells = [" | ".join(cell.replace("|", "/") for cell in line) for line in lines]
    return "\n".join([f"| {cells[0]} |", f"|{'---|' * len(head)}", *(f"| {cell} |" for cell in cells[1:])])

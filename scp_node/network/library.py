"""pynetdicom as this node uses it: silenced, and made to send bytes as they are.

What touches the library's internals lives here and in ``guard``, each with a test, and the version is pinned.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
import warnings
from io import BytesIO
from typing import TYPE_CHECKING, cast

from pynetdicom import _config, evt
from pynetdicom.dimse_primitives import C_STORE

if TYPE_CHECKING:
    from pydicom.uid import UID
    from pynetdicom.association import Association
    from pynetdicom.events import Event
    from pynetdicom.presentation import PresentationContext
    from pynetdicom.transport import AssociationSocket

C_STORE_RSP = 0x8001  # PS3.7 Table E.1-1
_PAUSE_S = 2.0  # the reactor looks every millisecond; who waited so long was not told


def quiet() -> None:
    """Keep the library's own messages out of our log: they carry stack traces for every port scan."""
    _config.LOG_HANDLER_LEVEL = "none"
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)


def forget_warnings() -> None:
    """Let this process drop the parser's warnings, which Python would remember: one for each odd UID ever seen.

    A peer that sends a new one with every request would fill the memory. For processes that listen, at start.
    """
    warnings.filterwarnings("ignore", category=UserWarning)


def no_delay(event: Event) -> None:
    """``EVT_CONN_OPEN``: send small packets at once; worth 2 to 3 times the speed at MTU 1500."""
    socket_of(event).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def socket_of(event: Event) -> socket.socket:
    """The TCP socket of an ``EVT_CONN_OPEN`` event, when it is always there."""
    return cast("socket.socket", cast("AssociationSocket", event.assoc.dul.socket).socket)


def release(association: Association) -> None:
    """Release an association, in bounded time.

    The library waits until its reactor's thread says that it pauses. An N-EVENT-REPORT that comes meanwhile is
    served by a third thread, which takes that word back when it is done: the library would wait for ever.
    """
    association._reactor_checkpoint.clear()
    deadline = time.monotonic() + _PAUSE_S
    while not association._is_paused and time.monotonic() < deadline:
        time.sleep(0.001)
    if association.is_established:
        association.acse.negotiate_release()
    association._reactor_checkpoint.set()


def send_encoded(
    association: Association,
    context: PresentationContext,
    sop_class_uid: str,
    sop_instance_uid: str,
    dataset: bytes,
) -> int | None:
    """C-STORE a data set as it is encoded; ``None`` when there was no valid answer.

    ``Association.send_c_store`` decodes and encodes again, which loses what is odd in a data set (PS3.5 allows
    several encodings of one). The association is of no further use after ``None``.
    """
    request = C_STORE()
    request.MessageID = 1
    request.Priority = 2
    request.AffectedSOPClassUID = cast("UID", sop_class_uid)
    request.AffectedSOPInstanceUID = cast("UID", sop_instance_uid)
    request.DataSet = BytesIO(dataset)
    answered, statuses = threading.Event(), list[int]()

    def seen(event: Event) -> None:
        command = event.message.command_set
        if command.get("CommandField") == C_STORE_RSP:
            statuses.append(int(command.Status))
            answered.set()

    # The library's own way is to pause the association's thread and read its queue; under load the thread now
    # and then takes the answer away first, and the sender waits for nothing.
    association.bind(evt.EVT_DIMSE_RECV, seen)
    try:
        association.dimse.send_msg(request, cast("int", context.context_id))
        deadline = time.monotonic() + (association.dimse_timeout or 60.0)
        while association.is_established and time.monotonic() < deadline and not answered.wait(0.1):
            pass
    finally:
        association.unbind(evt.EVT_DIMSE_RECV, seen)
    if not statuses:
        association.abort()
        return None
    return statuses[0]

"""Which presentation contexts the node accepts: every storage class in every transfer syntax, and C-ECHO.

A router sends a study as one job and stops at the first object that nobody takes; so nothing is refused here,
and what cannot be used is sorted out later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pydicom import uid
from pydicom._uid_dict import UID_dictionary
from pynetdicom import build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from scp_node.ports import STORAGE_COMMITMENT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom.uid import UID
    from pynetdicom.presentation import PresentationContext

PREFERENCE: Final[tuple[str, ...]] = (
    # No decoder at risk on our side, and every sender that can decode is able to.
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    # Lossless, those with the fastest and soundest decoders first.
    uid.JPEGLSLossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLossless,
    uid.JPEG2000Lossless,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
    uid.RLELossless,
    uid.DeflatedExplicitVRLittleEndian,
    # Lossy: only for images that are so already.
    uid.JPEGLSNearLossless,
    uid.JPEG2000,
    uid.HTJ2K,
    uid.JPEGExtended12Bit,
    uid.JPEGBaseline8Bit,
)
"""Transfer syntaxes by preference; all others follow, Explicit VR Big Endian last of all."""

_OTHERS: Final = len(PREFERENCE)
_RANK: Final = {syntax: rank for rank, syntax in enumerate(PREFERENCE)} | {uid.ExplicitVRBigEndian: _OTHERS + 1}


def supported_contexts() -> list[PresentationContext]:
    """Give what is negotiated the library's ordinary way: C-ECHO.

    Storage classes, private and unknown ones too, go through the library's unrestricted storage service.
    """
    return [build_context(Verification)]


def by_preference(proposed: Sequence[UID]) -> list[UID]:
    """Sort the transfer syntaxes of one proposed context.

    The unrestricted storage service takes the first one that the requestor names; sorted beforehand, that is
    the one we like best.
    """
    return sorted(proposed, key=lambda syntax: _RANK.get(syntax, _OTHERS))


class _OfAnotherService(uid.UID):
    """The UID of a class that is not stored, spelt so that the library looks it up among the supported contexts.

    The library takes every class whose keyword it does not know for a storage class: retired services too, and
    worklist queries, whose keyword it spells in another way than pydicom.
    """

    @property
    def keyword(self) -> str:
        """A keyword that the library knows."""
        return "Verification"


def may_be_stored(sop_class_uid: str) -> bool:
    """Whether a class is one of objects: a storage class, a private class, or one that is newer than we are."""
    name, kind, *_ = UID_dictionary.get(sop_class_uid, ("", ""))
    if not name or kind not in {"SOP Class", "Meta SOP Class"}:
        return True
    return "Storage" in name and not any(service in name for service in ("Commitment", "Management", "Print"))


def prepare(proposed: PresentationContext) -> None:
    """Put what an association request proposes into the form in which the library answers it as we want."""
    proposed.transfer_syntax = [*by_preference(proposed.transfer_syntax)]
    if not may_be_stored(str(proposed.abstract_syntax)):
        proposed._abstract_syntax = _OfAnotherService(str(proposed.abstract_syntax))


def asks_for_storage(proposed: Sequence[PresentationContext]) -> bool:
    """Whether any context is for more than C-ECHO and answers to our storage commitment requests."""
    return any(context.abstract_syntax not in (Verification, STORAGE_COMMITMENT) for context in proposed)

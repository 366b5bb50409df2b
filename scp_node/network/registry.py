"""What the listener accepts of everything that the standard registers, worked out by the rule that it works by.

For the conformance statement and its probe; the listener itself does not use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydicom._uid_dict import UID_dictionary
from pydicom.uid import UID
from pynetdicom import build_context
from pynetdicom.presentation import negotiate_unrestricted

from scp_node.network.commitment import commitment_context
from scp_node.network.contexts import PREFERENCE, by_preference, may_be_stored, prepare, supported_contexts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pynetdicom.presentation import PresentationContext

_CLASS_TYPES: Final = frozenset({"SOP Class", "Meta SOP Class"})
_AT_ONCE: Final = 128  # presentation contexts of one association, PS3.8 section 9.3.2.2


@dataclass(frozen=True, slots=True)
class Registered:
    """A SOP class or a transfer syntax of the registry (PS3.6 Annex A)."""

    uid: str
    name: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """A SOP class that the listener accepts, and in which transfer syntaxes.

    Attributes
    ----------
    stored
        Whether objects of it are stored; the others are Verification and Storage Commitment.
    """

    sop_class: Registered
    transfer_syntaxes: tuple[Registered, ...]
    stored: bool


def sop_classes() -> tuple[Registered, ...]:
    """Give every SOP class and Meta SOP class of the registry, retired ones too, by UID."""
    return _registered(_CLASS_TYPES)


def transfer_syntaxes() -> tuple[Registered, ...]:
    """Give every transfer syntax of the registry, retired ones too, those that we like best first."""
    found = _registered(frozenset({"Transfer Syntax"}))
    rank = {str(uid): place for place, uid in enumerate(by_preference([UID(syntax.uid) for syntax in found]))}
    return tuple(sorted(found, key=lambda syntax: rank[syntax.uid]))


def preferred() -> tuple[str, ...]:
    """Give the UIDs of the transfer syntaxes by our preference, as far as we have one."""
    return tuple(map(str, PREFERENCE))


def accepted_contexts() -> tuple[Accepted, ...]:
    """Give what the listener answers to a proposal of each SOP class in each transfer syntax by itself."""
    syntaxes = transfer_syntaxes()
    found = []
    for sop_class in sop_classes():
        taken = tuple(syntax for syntax in syntaxes if _takes(sop_class.uid, syntax.uid))
        if taken:
            found.append(Accepted(sop_class, taken, stored=may_be_stored(sop_class.uid)))
    return tuple(found)


def proposals() -> Iterator[list[PresentationContext]]:
    """Give every SOP class in every transfer syntax, a context for each pair, an association at a time."""
    pairs = [(sop_class.uid, syntax.uid) for sop_class in sop_classes() for syntax in transfer_syntaxes()]
    for start in range(0, len(pairs), _AT_ONCE):
        yield [build_context(sop_class, syntax) for sop_class, syntax in pairs[start : start + _AT_ONCE]]


def _takes(sop_class_uid: str, transfer_syntax_uid: str) -> bool:
    proposed = build_context(sop_class_uid, transfer_syntax_uid)
    proposed.context_id = 1
    prepare(proposed)
    answers, _ = negotiate_unrestricted([proposed], [*supported_contexts(), commitment_context()])
    return answers[0].result == 0


def _registered(types: frozenset[str]) -> tuple[Registered, ...]:
    return tuple(Registered(uid, name) for uid, (name, kind, *_) in sorted(UID_dictionary.items()) if kind in types)

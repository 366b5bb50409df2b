"""UIDs as a function of what they name: the same parts give the same UID, on every machine, for ever.

Nothing here is random and no clock is read; who calls decides what belongs to an identity.
"""

from __future__ import annotations

import json
import uuid

NAMESPACE = uuid.UUID("01c093ee-5546-4a26-b4e0-84f29b0915f4")
"""Fixed for ever: another value would give every report and every nodule a new identity."""

IMPLEMENTATION_CLASS_UID = f"2.25.{uuid.uuid5(NAMESPACE, 'implementation').int}"
IMPLEMENTATION_VERSION_NAME = "NODULE-NODE"


def uid_for(kind: str, *parts: str) -> str:
    """Give the UID of a thing.

    Parameters
    ----------
    kind
        What is named, such as ``sr``; keeps equal parts of different things apart.
    parts
        What makes it that thing. They are joined as a JSON list, so no two lists of parts can run together.

    Returns
    -------
    str
        ``2.25.`` and the decimal form of a version 5 UUID: at most 44 characters, no registered root needed.

    References
    ----------
    PS3.5 B.2, UUID Derived UID.
    """
    name = json.dumps([kind, *parts], ensure_ascii=True, separators=(",", ":"))
    return f"2.25.{uuid.uuid5(NAMESPACE, name).int}"

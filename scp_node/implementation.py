"""How this software names itself in DICOM (PS3.7 Annex D.3.3.2, PS3.10 section 7.1)."""

from __future__ import annotations

from typing import Final

IMPLEMENTATION_UID: Final = "2.25.311839260416094190226410349526137440637"
IMPLEMENTATION_VERSION: Final = "NODULE_NODE_0"

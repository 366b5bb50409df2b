"""Debian's Orthanc as an archive for tests.

It listens on every address, so it runs only inside a network namespace that holds nothing but loopback.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

DICOMWEB_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
TITLE, DICOM_PORT, HTTP_PORT = "TESTORTHANC", 14242, 18042
NODE_TITLE, NODE_PORT = "NODULE_NODE", 11112


def why_not() -> str:
    """Why Orthanc cannot be run here; empty when it can."""
    missing = [name for name in ("Orthanc", "unshare", "ip") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    if os.geteuid() != 0:
        return "a network namespace needs root"
    tried = subprocess.run(["unshare", "--net", "ip", "link", "set", "lo", "up"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else "this machine allows no network namespace"


def alone_with_loopback(module: str, *arguments: object, keep: bool = True) -> subprocess.CompletedProcess[str]:
    """Run one of our modules in a network namespace of its own; what it prints is kept, or seen at once."""
    inner = [sys.executable, "-m", module, *map(str, arguments)]
    command = ["unshare", "--net", "bash", "-c", 'ip link set lo up && exec "$@"', "bash", *inner]
    return subprocess.run(command, stdout=subprocess.PIPE if keep else None, text=True, check=False)


@contextmanager
def orthanc(folder: Path) -> Iterator[str]:
    """Run Orthanc until the block ends; gives the address of its REST interface."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "Name": "nodule-node test",
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": HTTP_PORT,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomPort": DICOM_PORT,
        "DicomAet": TITLE,
        "DicomAlwaysAllowStore": True,
        "DicomCheckCalledAet": True,
        # Who asks or wants a storage commitment has to be known, unlike who stores.
        "DicomModalities": {
            "node": {
                "AET": NODE_TITLE,
                "Host": "127.0.0.1",
                "Port": NODE_PORT,
                "AllowFind": True,
                "AllowStorageCommitment": True,
            }
        },
        "Plugins": [str(DICOMWEB_PLUGIN)] if DICOMWEB_PLUGIN.exists() else [],
        "DicomWeb": {
            "Enable": True,
            "Root": "/dicom-web/",
            "EnableWado": True,
            "WadoRoot": "/wado",
            "Host": "127.0.0.1",
            "Ssl": False,
            "StudiesMetadata": "Full",
            "SeriesMetadata": "Full",
        },
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    address = f"http://127.0.0.1:{HTTP_PORT}"
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        for _ in range(100):
            if process.poll() is not None:
                raise RuntimeError(f"Orthanc did not start; see {folder / 'orthanc.log'}")
            try:
                get_json(f"{address}/system")
                break
            except urllib.error.URLError:
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def get_json(address: str) -> Any:
    """The answer of Orthanc's REST interface to a GET."""
    with urllib.request.urlopen(address, timeout=30) as answer:
        return json.load(answer)


def reports_in(address: str, study_uid: str) -> list[str]:
    """Orthanc's own identifiers of the structured reports it holds for a study."""
    query = {"Level": "Instance", "Query": {"StudyInstanceUID": study_uid, "Modality": "SR"}}
    request = urllib.request.Request(f"{address}/tools/find", json.dumps(query).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return list(json.load(answer))

"""Run inside a network namespace: Orthanc, the node, a series between them. Prints what Orthanc holds, as JSON."""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

from demo.dicom_client import Peer, send
from scp_node.ledger.states import DeliveryState
from tests.builders import ChestSeries
from tests.e2e.node import RunningNode, settings_text
from tests.orthanc import DICOM_PORT, NODE_PORT, TITLE, get_json, orthanc, reports_in

SERIES = ChestSeries("orthanc", slices=64)


def main(folder: Path) -> None:
    SERIES.write(folder / "series")
    with orthanc(folder / "orthanc") as address:
        send(folder / "series", Peer(TITLE, DICOM_PORT), lambda *_: None)
        node = RunningNode(folder / "node", NODE_PORT, DICOM_PORT)
        node.folder.mkdir()
        node.settings.write_text(settings_text(NODE_PORT, TITLE, DICOM_PORT))
        node.start()
        try:
            send(folder / "series", node.peer, lambda *_: None)
            node.wait(lambda: _proven(node), "Orthanc has proven that it holds the report")
            node.stop()
        finally:
            if node.process is not None:
                node.kill_everything()
        found = reports_in(address, SERIES.study_uid)
        tags = [get_json(f"{address}/instances/{name}/simplified-tags") for name in found]
        with urllib.request.urlopen(f"{address}/instances/{found[0]}/file", timeout=30) as answer:
            (folder / "report.dcm").write_bytes(answer.read())
        studies = get_json(f"{address}/studies")
    print(json.dumps({"reports": tags, "studies": len(studies)}))


def _proven(node: RunningNode) -> bool:
    return [d.state for d in node.deliveries(SERIES.study_uid)] == [DeliveryState.DELIVERED]


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""``config check`` says who may send what, what happens to it, and where results go."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from scp_node.cli.main import application

SITE = """
[node]
ae_title = "CHEST_AI"
bind = "0.0.0.0"
[[senders]]
ae_title = "CT_ROUTER"
host = "10.0.0.5"
[[senders]]
ae_title = "ANY"
[[destinations]]
name = "pacs"
ae_title = "PACS"
host = "10.0.0.9"
port = 104
not_analysed = false
[routing]
"ANY" = []
[storage]
folder = "/srv/node"
other_objects = "header"
[study]
series = "all"
[detector]
operating_point = 0.3
"""


def said(path: Path | None) -> list[str]:
    result = CliRunner().invoke(
        application(), ["config", "check", *([] if path is None else ["--config", str(path)])]
    )
    assert result.exit_code == 0
    return result.stdout.splitlines()


def test_a_site_in_sentences(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text(SITE)
    assert said(path) == [
        f"Settings are read from {path}.",
        "",
        "This node is 'CHEST_AI' and listens on 0.0.0.0, port 11112.",
        "'CT_ROUTER' may store images, from 10.0.0.5 only.",
        "'ANY' may store images, from any host.",
        "",
        "A study is complete when nothing has arrived for 60 s; of it every suitable series is analysed.",
        "With slices missing it waits up to 600 s more; 3600 s after its first image it is decided in any case.",
        "Suitable is an axial CT series with slices of at most 3 mm, at most 3 mm apart, over at least 120 mm.",
        "What is not CT is noted in the database but not kept, and never analysed.",
        "Nodules are looked for with the bundled weights on the device 'auto', at the threshold 0.3.",
        "Images, reports and the database are kept in /srv/node.",
        "",
        "Results for 'CT_ROUTER' go to 'pacs' (PACS at 10.0.0.9, port 104) as Comprehensive 3D SR, but not for "
        "studies that could not be analysed.",
        "Results for 'ANY' are kept here and sent nowhere.",
    ]


def test_that_nobody_may_store_is_said_loudly() -> None:
    lines = said(None)
    assert "Nobody may store images: add a [[senders]] block for each device that sends." in lines
    assert "No results arise, because nobody may store." in lines
    assert lines[-2:] == [
        "Warning: No [[senders]] are listed: nobody may store images.",
        "Warning: No [[destinations]] are listed: reports are kept here and sent nowhere.",
    ]

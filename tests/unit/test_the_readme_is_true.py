"""The settings that README shows are settings that the node takes."""

from __future__ import annotations

import re
from pathlib import Path

from scp_node.settings import load_settings

ROOT = Path(__file__).parents[2]


def test_the_five_lines_of_the_readme_connect_a_sender_and_a_pacs(tmp_path):
    (block,) = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(block.splitlines()) == 5
    (tmp_path / "node.toml").write_text(block)
    settings = load_settings(tmp_path / "node.toml")
    assert settings.node.ae_title == "NODULE_NODE"
    assert [sender.ae_title for sender in settings.senders] == ["CT_ROUTER"]
    assert [(d.name, d.ae_title, d.port) for d in settings.destinations_for("CT_ROUTER")] == [("pacs", "PACS", 104)]


def test_every_link_of_the_readme_leads_somewhere():
    for name in ("README.md", "CONTRIBUTING.md", "docs/tutorial.md"):
        page = ROOT / name
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{name} links to {target}"


def test_research_use_is_said_before_anything_else_to_run():
    text = (ROOT / "README.md").read_text()
    assert text.index("Research use only") < text.index("make demo")

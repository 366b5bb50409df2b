"""The generated pages in ``docs`` are those that the code writes today."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.domain.outcome import CODES
from scp_node.cli.generate_docs import app, pages, read_reference
from scp_node.receive import Answer

DOCS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize("name", ["config.md", "cli.md", "codes.md"])
def test_page_is_in_step(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == pages()[name], "run 'python -m scp_node.cli.generate_docs'"


def test_check_names_the_stale_page_and_changes_nothing(tmp_path: Path) -> None:
    CliRunner().invoke(app, ["--folder", str(tmp_path)])
    (tmp_path / "cli.md").write_text("old")
    result = CliRunner().invoke(app, ["--folder", str(tmp_path), "--check"])
    assert result.exit_code == 1
    assert result.stderr == f"{tmp_path}/cli.md is out of step: run 'python -m scp_node.cli.generate_docs'.\n"
    assert (tmp_path / "cli.md").read_text() == "old"


def test_writing_twice_writes_once(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["--folder", str(tmp_path)]).stdout.count("wrote") == 3
    assert CliRunner().invoke(app, ["--folder", str(tmp_path)]).stdout == ""
    assert CliRunner().invoke(app, ["--folder", str(tmp_path), "--check"]).exit_code == 0


def test_every_code_and_every_answer_has_its_place() -> None:
    page = pages()["codes.md"]
    assert all(f"### {code}\n" in page for code in CODES)
    assert all(f"| `{answer.name}` | `0x{answer.status:04X}` |" in page for answer in Answer)


def test_every_code_on_the_page_has_a_cause_and_a_cure() -> None:
    sections = (DOCS / "codes.md").read_text(encoding="utf-8").split("\n### ")[1:]
    assert [section.splitlines()[0] for section in sections] == list(CODES)
    for section in sections:
        assert re.search(r"^- Usual cause: \S.{4,}\.$", section, re.MULTILINE), section
        assert re.search(r"^- What to do: \S.{5,}\.$", section, re.MULTILINE), section
    assert all(answer.advice for answer in Answer)
    assert all(answer.comment for answer in Answer if answer.status)


def test_the_reference_is_read_with_meaning_default_and_lists() -> None:
    text = (
        '# Opening.\n\n# About.\n#\n# [[things]]\n# name = "x"  # Its name. Required.\n# n = 1  # How many.\n\n'
        "[a]\n# One\n# two.\nkey = 5\n"
    )
    opening, (things, a) = read_reference(text)
    assert opening == "Opening."
    assert (things.name, things.comment) == ("[[things]]", "About.")
    assert [(key.name, key.default, key.meaning) for key in things.keys] == [
        ("name", "", "Its name. Required."),
        ("n", "1", "How many."),
    ]
    assert [(key.name, key.default, key.meaning) for key in a.keys] == [("key", "5", "One two.")]

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from training.cli.main import app


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_help_shows_the_usual_order_of_commands():
    said = run("--help").output
    for command in ("phantom", "prepare", "screening", "reduction", "evaluate", "export", "froc"):
        assert command in said
    assert "nodule-train prepare" in said


def test_the_command_starts_without_torch():
    code = "import sys, training.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("phantom", "x", "--out", "o"), "'x' is not a seed or a range of seeds; write 7, 1-19 or 1-4,9."),
        (("phantom", "1", "--out", "o", "--kernel", "B99"), "There is no kernel 'B99'; known are STANDARD"),
        (
            ("screening", "old", "--scans", ".", "--run", "r"),
            "There is no recipe old; known are ablation, modern, modern-last, modern-left-out,",
        ),
        (("prepare", "somewhere", "--out", "o"), "Real scans need --truth"),
    ],
)
def test_wrong_usage_ends_with_2_and_a_sentence(arguments: tuple[str, ...], sentence: str):
    result = run(*arguments)
    assert result.exit_code == 2
    assert sentence in result.output

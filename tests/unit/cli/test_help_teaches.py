"""Every command explains itself: what it does, each option with default and unit, an example that parses."""

from __future__ import annotations

import re
import shlex

import pytest
from typer.testing import CliRunner

from scp_node.cli.generate_docs import command_words, help_text
from scp_node.cli.main import COMMANDS, application

COMMAND_LINES = [words for words in command_words() if words not in ((), ("config",), ("db",))]


def test_the_commands_are_those_the_issue_names() -> None:
    assert [" ".join(words) for words in COMMAND_LINES] == [
        "serve",
        "config check",
        "doctor",
        "status",
        "explain",
        "events",
        "retry",
        "reprocess",
        "detect",
        "conformance",
        "db upgrade",
        "db backup",
    ]


@pytest.mark.parametrize("words", COMMAND_LINES, ids=" ".join)
def test_a_commands_help_has_an_example_of_itself(words: tuple[str, ...]) -> None:
    text = help_text(words)
    found = re.findall(rf"^    nodule-node {' '.join(words)}.*$", text, re.MULTILINE)
    assert found, text


@pytest.mark.parametrize("words", COMMAND_LINES, ids=" ".join)
def test_every_option_named_in_an_example_exists(words: tuple[str, ...]) -> None:
    text = help_text(words)
    options = {
        option for line in re.findall(r"^    nodule-node .*$", text, re.MULTILINE) for option in options_of(line)
    }
    known = set(re.findall(r"--[a-z-]+", text.split("Options:")[1].split("Examples:")[0]))
    assert options <= known


def options_of(line: str) -> list[str]:
    return [word for word in shlex.split(line) if word.startswith("--")]


@pytest.mark.parametrize("words", [*COMMAND_LINES, ("listen",), ("work",), ("metrics",)], ids=" ".join)
def test_every_command_takes_config_and_says_its_default(words: tuple[str, ...]) -> None:
    text = " ".join(help_text(words).split())
    assert "--config FILE Settings file. Default: node.toml in the current folder, else the packaged one." in text


def test_internal_commands_are_not_listed() -> None:
    assert "listen" not in help_text(())
    assert "  work" not in help_text(())


def test_no_short_help_is_cut() -> None:
    assert "..." not in help_text(()).split("Commands:")[1]


def test_the_version_is_that_of_the_distribution() -> None:
    result = CliRunner().invoke(application(), ["--version"])
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", result.stdout)


@pytest.mark.parametrize(
    "words", [["detect"], ["detect", "/nowhere"], ["status", "--limit", "-1"], ["nothing"], ["config", "nothing"]]
)
def test_wrong_usage_exits_2(words: list[str]) -> None:
    assert CliRunner().invoke(application(), words).exit_code == 2


def test_bad_settings_exit_78_and_every_fault_is_told(tmp_path: object) -> None:
    result = CliRunner().invoke(
        application(), ["status"], env={"NODULE_NODE__NODE__PORT": "0", "NODULE_NODE__LOG__LEVEL": "loud"}
    )
    assert result.exit_code == 78
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "The settings cannot be used (2 faults):",
        "  environment variable NODULE_NODE__NODE__PORT = 0: must be greater than or equal to 1",
        "  environment variable NODULE_NODE__LOG__LEVEL = \"loud\": must be 'debug', 'info', 'warning' or 'error'",
    ]


def test_every_command_is_found_by_its_modules_name() -> None:
    assert set(COMMANDS.values()) >= {"scp_node.cli.serve", "scp_node.cli.detect"}
    assert all(module.startswith("scp_node.cli.") for module in COMMANDS.values())

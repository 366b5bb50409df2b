"""Writes the reference pages ``docs/config.md``, ``docs/cli.md`` and ``docs/codes.md`` from the code itself.

``python -m scp_node.cli.generate_docs`` writes them, with ``--check`` it only says whether they are in step.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.main import get_command
from typer.testing import CliRunner

from pipeline.domain.outcome import CODES, Kind
from scp_node.cli.main import COMMANDS, application
from scp_node.cli.options import EXIT_FAILURE
from scp_node.receive import Answer
from scp_node.settings_file import PACKAGED_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

GENERATED = "<!-- Written by `python -m scp_node.cli.generate_docs`; change {source} instead. -->"
KIND_TITLES = {
    Kind.REFUSAL: ("Refusals", "The series or study is not analysed; the reason stands in the report."),
    Kind.NOTICE: ("Warnings", "The analysis goes on; the warning is repeated in the report."),
    Kind.FAILURE: ("Failures", "Our own; the study ends as FAILED and a person may try it again."),
}

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@dataclass(frozen=True, slots=True)
class Key:
    """One key of ``node.toml``: its name, its default as written, and the comment above it."""

    name: str
    default: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Section:
    """One section of ``node.toml``: its name, the comment above it, and its keys."""

    name: str
    comment: str
    keys: tuple[Key, ...]


@app.command()
def write(
    folder: Path = Path("docs"),
    *,
    check: bool = typer.Option(default=False, help="Change nothing; exit code 1 when a page is out of step."),
) -> None:
    """Write the generated pages, or check them."""
    stale = {name: text for name, text in pages().items() if _read(folder / name) != text}
    if check:
        for name in stale:
            typer.echo(f"{folder / name} is out of step: run 'python -m scp_node.cli.generate_docs'.", err=True)
        raise typer.Exit(EXIT_FAILURE if stale else 0)
    folder.mkdir(exist_ok=True)
    for name, text in stale.items():
        (folder / name).write_text(text, encoding="utf-8")
        typer.echo(f"wrote {folder / name}")


def pages() -> dict[str, str]:
    """Give every generated page by its file name."""
    return {
        "config.md": "\n".join(_config_page()) + "\n",
        "cli.md": "\n".join(_cli_page()) + "\n",
        "codes.md": "\n".join(_codes_page()) + "\n",
    }


def read_reference(text: str) -> tuple[str, tuple[Section, ...]]:
    """Read ``node.toml`` with its comments: the opening, then the sections in order.

    A commented block ``# [[name]]`` is a section whose keys carry their meaning behind them.
    """
    blocks = [block.splitlines() for block in text.split("\n\n")]
    opening, *rest = (_uncommented(block) for block in blocks)
    return "\n".join(opening), tuple(section for block in rest for section in _sections(block))


def _uncommented(block: Sequence[str]) -> list[str]:
    return [line.removeprefix("#").removeprefix(" ") if line.startswith("#") else f"={line}" for line in block]


def _sections(block: Sequence[str]) -> Iterator[Section]:
    """A block holds one section; lines of real TOML carry ``=`` in front."""
    heads = [number for number, line in enumerate(block) if line.lstrip("=").startswith("[")]
    head = heads[0]
    comment = "\n".join(line for line in block[:head] if line)
    is_list = block[head].startswith("[[")
    keys = tuple(_list_keys(block[head + 1 :]) if is_list else _keys(block[head + 1 :]))
    yield Section(block[head].lstrip("="), comment, keys)


def _list_keys(lines: Sequence[str]) -> Iterator[Key]:
    for line in lines:
        assignment, _, meaning = line.partition(" # ")
        name, _, value = assignment.partition("=")
        required = meaning.endswith("Required.")
        yield Key(name.strip(), "" if required else value.strip(), meaning.strip())


def _keys(lines: Sequence[str]) -> Iterator[Key]:
    meaning: list[str] = []
    for line in lines:
        if line.startswith("="):
            name, _, value = line[1:].partition(" = ")
            yield Key(name, value, " ".join(meaning))
            meaning = []
        else:
            meaning.append(line)


def _config_page() -> Iterator[str]:
    opening, sections = read_reference(PACKAGED_FILE.read_text(encoding="utf-8"))
    yield "# Settings"
    yield ""
    yield GENERATED.format(source="`config/node.toml`")
    yield ""
    yield from opening.splitlines()[2:]
    for section in sections:
        yield ""
        yield f"## `{section.name}`"
        if section.comment:
            yield ""
            yield from _prose(section.comment)
        if section.keys:
            yield ""
            yield "| key | default | meaning |"
            yield "|---|---|---|"
        for key in section.keys:
            default = f"`{key.default}`" if key.default else "required"
            yield f"| `{key.name}` | {_cell(default)} | {_cell(key.meaning.removesuffix(' Required.'))} |"


def _prose(comment: str) -> Iterator[str]:
    """Comment lines as they are; the lines of TOML at its end as code."""
    lines = comment.splitlines()
    code = [line for line in lines if line.startswith('"') and " = " in line]
    yield from (line for line in lines if line not in code)
    if code:
        yield from ("", "```toml", *code, "```")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _cli_page() -> Iterator[str]:
    yield "# Commands"
    yield ""
    yield GENERATED.format(source="the help texts in `scp_node/cli`")
    for words in command_words():
        yield ""
        yield f"## `{' '.join(['nodule-node', *words])}`"
        yield ""
        yield "```"
        yield help_text(words).rstrip()
        yield "```"


def command_words() -> tuple[tuple[str, ...], ...]:
    """Give every command a person may call, the table itself first, groups before their commands."""
    found: list[tuple[str, ...]] = [()]
    for name in COMMANDS:
        command: Any = get_command(application([name])).commands[name]  # type: ignore[attr-defined]
        if not command.hidden:
            found.append((name,))
            found.extend((name, inner) for inner in getattr(command, "commands", {}))
    return tuple(found)


def help_text(words: Sequence[str]) -> str:
    """Give what ``--help`` prints."""
    result = CliRunner().invoke(application(), [*words, "--help"], prog_name="nodule-node")
    return re.sub(r"[ \t]+\n", "\n", result.output)


def _codes_page() -> Iterator[str]:
    yield "# Codes"
    yield ""
    yield GENERATED.format(source="`pipeline/domain/outcome.py` and `scp_node/receive.py`")
    yield ""
    yield "Every code that `nodule-node status`, `explain`, `detect`, the log and the report can name."
    for kind, (title, meaning) in KIND_TITLES.items():
        yield ""
        yield f"## {title}"
        yield ""
        yield meaning
        for code, page in CODES.items():
            if page.kind is kind:
                yield ""
                yield f"### {code}"
                yield ""
                yield page.meaning
                yield ""
                yield f"- Usual cause: {page.cause}"
                yield f"- What to do: {page.action}"
    yield ""
    yield from _statuses()


def _statuses() -> Iterator[str]:
    yield "## Answers to C-STORE"
    yield ""
    yield "What the sender of an image is told (PS3.4 Table B.2-1); the comment is Error Comment (0000,0902)."
    yield ""
    yield "| name | status | comment | the sender should |"
    yield "|---|---|---|---|"
    for answer in Answer:
        yield f"| `{answer.name}` | `0x{answer.status:04X}` | {answer.comment} | {answer.advice} |"


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


if __name__ == "__main__":
    sys.exit(app())

"""Puts the section of one bench into the file of results, in place of an older one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def publish(results: Path | None, bench: str, title: str, text: str) -> None:
    """Print the section of a bench, and write it where it is wanted."""
    print(text)
    if results is not None:
        write_section(results, bench, title, text)


def write_section(path: Path, bench: str, title: str, text: str) -> None:
    """Replace what stands between the two marks of a bench, or add it at the end."""
    mark = f"<!-- {bench} -->"
    old = path.read_text() if path.exists() else "# Results\n"
    before, _, rest = old.partition(mark)
    _, _, after = rest.partition(mark)
    section = f"{before.rstrip()}\n\n{mark}\n## {title}\n\n{text}\n{mark}\n{after.lstrip()}"
    path.write_text(section.rstrip() + "\n")

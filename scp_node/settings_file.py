"""Where settings come from: the packaged file, the site's file laid over it, the environment over both.

Reads and joins; what the values may be is the business of :mod:`scp_node.settings`.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ENVIRONMENT_PREFIX = "NODULE_NODE__"
PACKAGED_FILE = Path(str(files("config").joinpath("node.toml")))


class SettingsError(Exception):
    """The settings cannot be used; the text lists every fault, one a line."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


def find_settings_file(path: Path | None) -> Path:
    """The file that was asked for, else ``node.toml`` in the current folder, else the packaged one."""
    if path is not None:
        return path.resolve()
    here = Path("node.toml")
    return here.resolve() if here.is_file() else PACKAGED_FILE


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Settings that a running node has checked and laid down for its processes, and the file they came from."""

    source: Path
    version: int
    values: dict[str, Any]


def read_snapshot(path: Path) -> Snapshot | None:
    """Read a snapshot; ``None`` when ``path`` is an ordinary settings file.

    Raises
    ------
    SettingsError
        The snapshot cannot be read.
    """
    if path.suffix != ".json":
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Snapshot(Path(content["source"]), content["version"], content["values"])
    except (OSError, ValueError, KeyError, TypeError):
        raise SettingsError([f"{path}: is not the snapshot of a running node"]) from None


def read_values(source: Path, environment: Mapping[str, str]) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    """Values by section and key, and the environment variable behind each key that has one.

    Raises
    ------
    SettingsError
        ``source`` cannot be read or is not TOML.
    """
    values = _read_toml(PACKAGED_FILE)
    if source != PACKAGED_FILE:
        _lay_over(values, _read_toml(source))
    return values, _apply_environment(values, environment)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError([f"{path}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        raise SettingsError([f"{path}: is not UTF-8 text: byte {error.start} cannot be read"]) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError([f"{path}: is not valid TOML: {error}"]) from None


def _lay_over(base: dict[str, Any], upper: Mapping[str, Any]) -> None:
    for section, content in upper.items():
        if isinstance(content, dict) and isinstance(base.get(section), dict):
            base[section].update(content)
        else:
            base[section] = content


def _apply_environment(values: dict[str, Any], environment: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    """Put ``NODULE_NODE__SECTION__KEY`` over the files; return which variable set which key."""
    variables: dict[tuple[str, ...], str] = {}
    for variable in sorted(environment):
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        section, _, key = variable.removeprefix(ENVIRONMENT_PREFIX).partition("__")
        place = (section.lower(), key if section == "ROUTING" else key.lower()) if key else (section.lower(),)
        table = values if len(place) == 1 else values.setdefault(place[0], {})
        table[place[-1]] = _environment_value(environment[variable], table.get(place[-1]))
        variables[place] = variable
    return variables


def _environment_value(text: str, default: object) -> object:
    """A text stays a text where the default is one; else it is read as a TOML value."""
    if isinstance(default, str):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text

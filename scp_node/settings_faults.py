"""What is wrong with the settings, in sentences: where, what stands there, the rule, the nearest valid name.

Also the faults between sections: names used twice, and routes that lead nowhere.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

SENDER = "sender"
EVERY_SENDER = "*"

Place = tuple[str | int, ...]
"""Section, key and, inside lists, index: ``("senders", 0, "host")``."""

_ABSENT = object()
_NOT_SHOWN = {"database_url", "skip_patient_ids"}


@dataclass(frozen=True)
class FaultReader:
    """Turns faults into sentences.

    Attributes
    ----------
    source
        The settings file.
    values
        All values by section and key, unchecked.
    variables
        The environment variable behind each key that has one.
    valid_names
        The keys of each section.
    """

    source: Path
    values: Mapping[str, Any]
    variables: Mapping[tuple[str, ...], str]
    valid_names: Mapping[str, Sequence[str]]

    def faults(self, error: ValidationError) -> list[str]:
        """A sentence for each place that pydantic finds fault with."""
        rules: dict[Place, list[str]] = {}
        for detail in error.errors(include_url=False):
            place = self._place(detail)
            rules.setdefault(place, []).append(self._rule(detail, place))
        return [self.fault(place, " or ".join(texts)) for place, texts in rules.items()]

    def fault(self, place: Place, rule: str) -> str:
        """The sentence: file or environment variable, key, value, rule."""
        variable = self.variables.get(tuple(map(str, place[:2])), self.variables.get((str(place[0]),)))
        if variable is not None:
            return f"environment variable {variable}{self._shown(place)}: {rule}"
        return f"{self.source}: {_key(place)}{self._shown(place)}: {rule}"

    def _place(self, detail: ErrorDetails) -> Place:
        """The key's place; pydantic adds the tried type of a union, which is no key."""
        place = tuple(detail["loc"])
        if detail["type"] in {"missing", "extra_forbidden"}:
            return place
        while place and self._value(place) is _ABSENT:
            place = place[:-1]
        return place

    def _rule(self, detail: ErrorDetails, place: Place) -> str:
        if detail["type"] == "missing":
            return "this key is required"
        if detail["type"] == "extra_forbidden":
            near = _nearest(str(place[-1]), self._names_beside(place))
            return f"unknown {'section' if len(place) == 1 else 'key'}{near}"
        text = re.sub(r"^(Input|String|Tuple) should", "must", detail["msg"].removeprefix("Value error, "))
        return (
            text.replace("valid dictionary", "table")
            .replace("an object", "a table")
            .replace(" after validation", "")
        )

    def _shown(self, place: Place) -> str:
        value = self._value(place)
        if value is _ABSENT or isinstance(value, dict):
            return ""
        if _NOT_SHOWN.intersection(place):
            return " = (not shown)"
        text = json.dumps(value, default=str)
        return f" = {text if len(text) <= 80 else text[:77] + '...'}"

    def _names_beside(self, place: Place) -> Sequence[str]:
        """The valid names where ``place`` stands: the sections, or the keys of its section."""
        return tuple(self.valid_names) if len(place) == 1 else self.valid_names.get(str(place[0]), ())

    def _value(self, place: Place) -> object:
        value: Any = self.values
        for step in place:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return _ABSENT
        return value


def _key(place: Place) -> str:
    """``("senders", 0, "host")`` as ``senders[1].host``: people count from one."""
    parts = [f"[{step + 1}]" if isinstance(step, int) else f".{step}" for step in place]
    return "".join(parts).removeprefix(".")


def _nearest(name: str, names: Sequence[str]) -> str:
    close = get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    return f"; the nearest valid name is {close[0]}" if close else ""


def reference_faults(reader: FaultReader) -> list[str]:
    """Faults between sections; tolerant of the others, so that all are named at once."""
    return [*_double_faults(reader), *_routing_faults(reader)]


def _entries(values: Mapping[str, Any], section: str) -> list[dict[str, Any]]:
    content = values.get(section)
    return [entry for entry in content if isinstance(entry, dict)] if isinstance(content, list) else []


def _double_faults(reader: FaultReader) -> Iterator[str]:
    for section, key in (("senders", "ae_title"), ("destinations", "name")):
        values = [entry.get(key) for entry in _entries(reader.values, section)]
        for index, value in enumerate(values):
            if value is not None and value in values[:index]:
                yield reader.fault((section, index, key), f"is listed twice in [[{section}]]; each {key} once")


def _routing_faults(reader: FaultReader) -> Iterator[str]:
    routing = reader.values.get("routing")
    if not isinstance(routing, dict):
        return
    senders = [str(entry.get("ae_title", "")).strip() for entry in _entries(reader.values, "senders")]
    destinations = [str(entry.get("name", "")) for entry in _entries(reader.values, "destinations")]
    for sender, route in routing.items():
        if sender not in (EVERY_SENDER, *senders):
            near = _nearest(sender, senders)
            yield reader.fault(("routing", sender), f"no sender in [[senders]] has the AE title {sender!r}{near}")
        for name in route if isinstance(route, list) else []:
            if isinstance(name, str) and name not in (SENDER, *destinations):
                near = _nearest(name, destinations)
                yield reader.fault(("routing", sender), f"no destination is named {name!r}{near}")
    for sender in senders:
        if SENDER in _route_of(sender, routing) and not _can_receive(sender, reader.values):
            yield (
                f"{reader.source}: [routing] sends results back to {sender!r}, whose address is not known: "
                "give its [[senders]] block host and port, or list it in [[destinations]]"
            )


def _route_of(sender: str, routing: Mapping[str, Any]) -> Sequence[object]:
    route = routing.get(sender, routing.get(EVERY_SENDER, ()))
    return route if isinstance(route, list) else ()


def _can_receive(sender: str, values: Mapping[str, Any]) -> bool:
    listed = any(entry.get("ae_title") == sender for entry in _entries(values, "destinations"))
    own = (entry for entry in _entries(values, "senders") if entry.get("ae_title") == sender)
    return listed or any(entry.get("host") and entry.get("port") for entry in own)

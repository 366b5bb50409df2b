"""The table of ``docs/detection.md``: what was asked of the detector, and what finished runs reached.

    python -m bench.detection_table --left-out runs/left-out --benchmark runs/benchmark --probe runs/probe.json \
        --results docs/detection.md

Trains and searches nothing: ``nodule-train left-out``, ``evaluate --luna16`` on the benchmark and ``probe`` do
(docs/training.md). A folder that is not given, or not there, leaves its rows "not measured".
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.sections import publish
from training.calibration import CalibrationError
from training.held_out import half_and_half, read_held_out

NAME = "detection_table"
BOTH_PARTS = ("phantoms", "insertions")
Found = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; ``reached`` gives the words and whether it is enough, from what was read."""

    source: str
    text: str
    asked: str
    reached: Callable[[Found], tuple[str, bool]]


def at_least(limit: float, value: float, of: str = "") -> tuple[str, bool]:
    """Say a value that must not be lower."""
    return f"{value:.4g}{of}", value >= limit


def at_most(limit: float, value: float, unit: str = "") -> tuple[str, bool]:
    """Say a value whose size must not be larger."""
    return f"{value:.3g}{unit}", abs(value) <= limit


def found_at(rate: str, limit: float) -> Callable[[Found], tuple[str, bool]]:
    """Compare nodules found with the excluded list, and say both."""

    def say(table: Found) -> tuple[str, bool]:
        median = table["median"]
        with_list, without = (median[f"found_{key}_list"][rate] for key in ("with", "without"))
        return f"{with_list:g} of {median['nodules']} with the list, {without:g} without", without >= limit

    return say


def group(name: str, limit: float) -> Callable[[Found], tuple[str, bool]]:
    """Compare a group's sensitivity at one false mark a scan."""

    def say(graded: Found) -> tuple[str, bool]:
        for row in graded["at"]["1"]["groups"]:
            if row["group"] == name:
                interval = f"{row['low']:.2f} to {row['high']:.2f}"
                return f"{row['found']} of {row['nodules']}: {row['sensitivity']:.3f} ({interval})", (
                    row["sensitivity"] >= limit
                )
        return "no such nodule in the cohort", False

    return say


def stage_1_recall(graded: Found) -> tuple[str, bool]:
    """Compare the part of all nodules that has any mark."""
    return at_least(0.97, round(graded["hits"]["nodules"] / graded["nodules"], 4))


def each_cpm(graded: Found) -> tuple[str, bool]:
    """Compare the mean sensitivity on phantoms and on insertions."""
    values = {part: graded["parts"][part]["cpm"] for part in BOTH_PARTS if part in graded["parts"]}
    return ", ".join(f"{part} {v:.3f}" for part, v in values.items()), min(values.values()) >= 0.9


def diameter_bias(graded: Found) -> tuple[str, bool]:
    """Compare the mean relative error of diameters."""
    part = graded["hits"]["diameter_bias_part"]
    return f"{part:+.1%}", abs(part) <= 0.03


def nodule_free(graded: Found) -> tuple[str, bool]:
    """Say the false marks on scans without a nodule."""
    return f"{graded['at']['1']['false_marks_per_scan']['nodule-free']:.2f} a scan", True


def expected_error(reliability: Found) -> tuple[str, bool]:
    """Compare the calibration error after fitting on the other half."""
    return at_most(0.05, reliability["after"]["expected_error"])


def areas(probe: Found) -> tuple[str, bool]:
    """Say the probe's areas."""
    return "; ".join(f"{a['question']} by {a['classifier']} {a['auc']:.2f}" for a in probe["areas"]), True


ROWS = (
    Row(
        "left-out",
        "scans left out: among 100 candidates",
        "8 of 8",
        lambda t: at_least(8, t["median"]["among_100"]),
    ),
    Row("left-out", "found at 0.25 false marks a scan", "7 of 8", found_at("0.25", 7)),
    Row("left-out", "found at 1", "8 of 8", found_at("1", 8)),
    Row(
        "left-out",
        "diameter, mean error",
        "0.6 mm",
        lambda t: at_most(0.6, t["median"]["diameter_error_mm"], " mm"),
    ),
    Row(
        "left-out",
        "position, median error",
        "0.5 mm",
        lambda t: at_most(0.5, t["median"]["centre_error_mm"], " mm"),
    ),
    Row("benchmark", "benchmark: CPM", "0.90", each_cpm),
    Row("benchmark", "recall of stage 1", "0.97", stage_1_recall),
    Row("benchmark", "diameter, bias", "within 3 %", diameter_bias),
    Row("benchmark", "at 1 false mark a scan: solid 3.5 mm", "0.7", group("solid 3.5 mm (3 to 4)", 0.7)),
    Row("benchmark", "solid 4.5 mm", "0.9", group("solid 4.5 mm (4 to 5.2)", 0.9)),
    Row("benchmark", "solid from 6 mm on", "0.97", group("solid >= 6 mm", 0.97)),
    Row("benchmark", "part-solid from 6 mm on", "0.95", group("part-solid >= 6 mm", 0.95)),
    Row("benchmark", "ground glass 4.5 mm", "0.5", group("ground glass 4.5 mm (4 to 5.2)", 0.5)),
    Row("benchmark", "ground glass 6 mm", "0.8", group("ground glass 6 mm (5.2 to 7)", 0.8)),
    Row("benchmark", "ground glass from 8 mm on", "0.9", group("ground glass >= 8 mm", 0.9)),
    Row("benchmark", "at the pleura", "0.9", group("pleura", 0.9)),
    Row("benchmark", "scans without nodules, false marks", "said", nodule_free),
    Row("calibration", "calibration error, fitted on one half, 15 bins", "0.05", expected_error),
    Row("probe", "fingerprint of insertion, area", "said", areas),
)


def read_results(left_out: Path | None, benchmark: Path | None, probe: Path | None) -> dict[str, Found]:
    """Read what there is."""
    found: dict[str, Found] = {}
    if left_out and (file := left_out / "left-out.json").is_file():
        found["left-out"] = json.loads(file.read_text())
    if benchmark and (file := benchmark / "graded.json").is_file():
        found["benchmark"] = json.loads(file.read_text())
        try:
            found["calibration"] = half_and_half(read_held_out(benchmark), "platt")
        except CalibrationError as error:
            print(f"Calibration was not measured: {error}")
    if probe and probe.is_file():
        found["probe"] = {"areas": json.loads(probe.read_text())}
    return found


def table(found: Mapping[str, Found]) -> str:
    """Put the rows in Markdown; what falls short is bold."""
    lines = ["| shown on | asked | reached |", "|---|---|---|"]
    for row in ROWS:
        if row.source not in found:
            lines.append(f"| {row.text} | {row.asked} | not measured |")
            continue
        words, enough = row.reached(found[row.source])
        lines.append(f"| {row.text} | {row.asked} | {words if enough else f'**short**: {words}'} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, and write it where it is wanted."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.detection_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--left-out", type=Path, help="run folder of 'nodule-train left-out'")
    parser.add_argument(
        "--benchmark", type=Path, help="folder of 'nodule-train evaluate --luna16' on the benchmark"
    )
    parser.add_argument("--probe", type=Path, help="JSON file of 'nodule-train probe'")
    parser.add_argument("--results", type=Path, help="Markdown file whose section is replaced")
    asked = parser.parse_args()
    found = read_results(asked.left_out, asked.benchmark, asked.probe)
    seeds = len(found["left-out"]["seeds"]) if "left-out" in found else 0
    said = f"Taken from finished runs on {datetime.now(UTC):%Y-%m-%d} by `python -m {parser.prog.split()[-1]}`"
    text = f"{said}; scans left out: median of {seeds} seeds.\n\n{table(found)}"
    publish(asked.results, NAME, "Asked and reached", text)


if __name__ == "__main__":
    main()

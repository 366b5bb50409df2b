"""``explain``: for each series why it was or was not chosen, and what came of it; ``retry``: once more."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Site

NOON = 1_795_435_200.0
THIN = {
    "eligible": True,
    "score": 87.25,
    "refusal": None,
    "notices": [{"code": "CONTRAST", "text": "Contrast was given."}],
    "reasons": ["Thin slices: 40 points.", "Soft kernel: 25 points."],
}
THICK = {
    "eligible": False,
    "score": 0.0,
    "refusal": {"code": "SLICES_TOO_THICK", "text": "Slices of 5 mm.", "retryable": False},
    "notices": [],
    "reasons": ["Slices of 5 mm."],
}
ANALYSIS = {
    "outcome": "findings",
    "reason": None,
    "findings": [{}, {}],
    "warnings": [{"code": "LUNG_CUT", "text": "Lung touches the last slice."}],
}


def fill(site: Site) -> None:
    site.study("1.1", "REPORTED", codes=["CONTRAST"])
    for uid, values in {
        "1.1.5": {"holds_ct": True, "decision": THICK},
        "1.1.1": {"holds_ct": True, "decision": THIN, "analysis": ANALYSIS},
        "1.1.3": {"holds_ct": False},
        "1.1.2": {"holds_ct": True, "decision": THIN | {"score": 50.0, "notices": []}},
        "1.1.4": {"holds_ct": True},
    }.items():
        site.add("series", study_uid="1.1", series_uid=uid, last_received_at=NOON, **values)
    site.instances("1.1", "1.1.1", 2)
    site.event("study_ready", "Revision 1 is complete: quiet.", study_uid="1.1")
    site.event("not_analysed", "Of another study.", study_uid="1.2")
    site.event("reported", "Two findings.", study_uid="1.1", code="CONTRAST", at=NOON + 60)


def test_every_series_has_its_verdict_the_best_first(site: Site) -> None:
    fill(site)
    result = site.run("explain", "1.1")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "1.1  REPORTED",
        "  since 2026-11-23T12:01:20Z, revision 1, from CT_ROUTER, holds 2 ct",
        "  codes: CONTRAST",
        "Series 1.1.1 (2 instances): chosen, score 87.2",
        "  - Thin slices: 40 points.",
        "  - Soft kernel: 25 points.",
        "  - warning CONTRAST: Contrast was given.",
        "  => findings: 2 reported",
        "  => warning LUNG_CUT: Lung touches the last slice.",
        "Series 1.1.2 (0 instances): suitable, but not chosen, score 50.0",
        "  - Thin slices: 40 points.",
        "  - Soft kernel: 25 points.",
        "Series 1.1.5 (0 instances): not suitable, SLICES_TOO_THICK",
        "  - Slices of 5 mm.",
        "Series 1.1.3 (0 instances): holds no CT images, so it was not judged",
        "Series 1.1.4 (0 instances): not judged yet",
        "What happened (UTC):",
        "  2026-11-23T12:00:01Z  Revision 1 is complete: quiet.",
        "  2026-11-23T12:01:00Z  Two findings. [CONTRAST]",
    ]


def test_the_best_series_is_the_chosen_one_before_its_analysis_has_ended_too(site: Site) -> None:
    site.study("1.1", "ANALYSING")
    for rank, uid in enumerate(("1.1.1", "1.1.2"), 1):
        decision = THIN | {"score": 50.0 - rank, "rank": rank}
        site.add("series", study_uid="1.1", series_uid=uid, last_received_at=NOON, holds_ct=True, decision=decision)
    lines = site.run("explain", "1.1").stdout.splitlines()
    assert "Series 1.1.1 (0 instances): chosen, score 49.0" in lines
    assert "Series 1.1.2 (0 instances): suitable, but not chosen, score 48.0" in lines


def test_an_analysis_that_failed_says_why(site: Site) -> None:
    site.study("1.1", "NOT_ANALYSED")
    refused = {
        "outcome": "not_analysed",
        "reason": {"code": "NO_LUNG_FOUND", "text": "No lungs."},
        "findings": [],
        "warnings": [],
    }
    site.add(
        "series",
        study_uid="1.1",
        series_uid="1.1.1",
        last_received_at=NOON,
        holds_ct=True,
        decision=THIN,
        analysis=refused,
    )
    assert "  => not analysed, NO_LUNG_FOUND: No lungs." in site.run("explain", "1.1").stdout.splitlines()


def test_an_unknown_study_is_named(site: Site) -> None:
    result = site.run("explain", "9.9")
    assert result.exit_code == 1
    assert result.stderr == "The ledger knows no study 9.9; 'nodule-node status' lists those it knows.\n"


def test_retry_makes_failed_deliveries_due_and_analyses_a_failed_study_again(site: Site) -> None:
    site.study("1.1", "FAILED")
    site.report("2.25.1", "1.1")
    site.delivery("2.25.1", "pacs", "failed_final")
    site.delivery("2.25.1", "backup", "delivered")
    result = site.run("retry", "1.1")
    assert result.exit_code == 0
    assert result.stdout == "1 failed deliveries are due again.\nThe study will be analysed again.\n"
    status = site.run("status", "1.1").stdout
    assert "1.1  RECEIVING" in status
    assert "pacs queued" in status
    assert "backup delivered" in status


def test_retry_leaves_a_good_report_alone_unless_asked(site: Site) -> None:
    site.study("1.1", "REPORTED")
    result = site.run("retry", "1.1")
    assert result.exit_code == 1
    assert result.stderr == "Nothing to try again: the study is REPORTED and no delivery has failed.\n"
    assert site.run("retry", "1.1", "--analysis").stdout == "The study will be analysed again.\n"


def test_retry_of_an_unknown_study_is_refused(site: Site) -> None:
    result = site.run("retry", "9.9")
    assert result.exit_code == 1
    assert result.stderr == "The ledger knows no study 9.9; 'nodule-node status' lists those it knows.\n"

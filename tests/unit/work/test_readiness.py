"""When a study is complete: the quiet timer, the longest wait, patience for missing slices."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scp_node.readiness import Counts, LookAgainAt, NoCt, Proof, Ready, StudyFacts, readiness


def ask(
    now,
    *,
    holds_ct=True,
    waiting_since=100.0,
    last=110.0,
    not_before=None,
    sending=False,
    proof=None,
    quiet_s=60.0,
    max_wait_s=3600.0,
):
    facts = StudyFacts(holds_ct, waiting_since, last, not_before, sending, proof)
    return readiness(facts, quiet_s=quiet_s, max_wait_s=max_wait_s, gap_wait_s=600.0, now=now)


WHOLE = Proof(110.0, Counts.EQUAL, geometry=True, lungs=True)
EARLY = "the archive holds the same images, they form a whole volume, and nobody is sending"


def test_it_waits_until_nothing_has_arrived_for_the_quiet_time():
    assert ask(169.9) == LookAgainAt(170.0, "images may still arrive")
    assert ask(170.0) == Ready("no new image for 60 s")


def test_each_new_image_starts_the_quiet_time_anew():
    assert ask(170.0, last=169.0) == LookAgainAt(229.0, "images may still arrive")


def test_a_study_that_never_falls_quiet_is_taken_after_the_longest_wait():
    assert ask(3699.0, last=3690.0) == LookAgainAt(3700.0, "images may still arrive")
    assert ask(3700.0, last=3690.0) == Ready("waited for 3600 s, the longest wait", timed_out=True)


def test_a_quiet_time_below_two_seconds_counts_as_two():
    assert ask(111.9, quiet_s=0.1) == LookAgainAt(112.0, "images may still arrive")
    assert isinstance(ask(112.0, quiet_s=0.1), Ready)


def test_missing_slices_are_waited_for_beyond_the_quiet_time():
    assert ask(200.0, not_before=710.0) == LookAgainAt(710.0, "slices are missing that may still arrive")
    assert ask(710.0, not_before=710.0) == Ready("no new image for 600 s")


def test_the_longest_wait_ends_the_patience_for_missing_slices_too():
    assert ask(3700.0, not_before=9999.0) == Ready("waited for 3600 s, the longest wait", timed_out=True)


@pytest.mark.parametrize("now", [170.0, 3700.0])
def test_a_study_without_ct_is_closed_not_analysed(now):
    assert isinstance(ask(now, holds_ct=False), NoCt)


def test_a_clock_that_was_set_back_means_waiting():
    assert ask(50.0) == LookAgainAt(170.0, "images may still arrive")


def test_a_study_that_is_provably_whole_starts_at_once():
    assert ask(110.5, proof=WHOLE) == Ready(EARLY)


@pytest.mark.parametrize(
    "doubt",
    [
        {"sending": True},
        {"proof": replace(WHOLE, counts=Counts.UNKNOWN)},
        {"proof": replace(WHOLE, counts=Counts.OTHER)},
        {"proof": replace(WHOLE, counts=Counts.MORE)},
        {"proof": replace(WHOLE, geometry=False)},
        {"proof": replace(WHOLE, geometry=None)},
        {"proof": replace(WHOLE, lungs=False)},
        {"proof": replace(WHOLE, lungs=None)},
        {"proof": replace(WHOLE, images_at=109.0)},
        {"proof": None},
        {"not_before": 710.0},
        {"holds_ct": False},
    ],
    ids=str,
)
def test_one_sign_that_does_not_agree_means_the_quiet_time(doubt):
    assert isinstance(ask(110.5, **{"proof": WHOLE} | doubt), LookAgainAt)


@pytest.mark.parametrize("counts", [Counts.EQUAL, Counts.OTHER, Counts.UNKNOWN])
@pytest.mark.parametrize("sending", [True, False])
def test_the_quiet_time_is_enough_whatever_the_archive_says_but_more(counts, sending):
    unproven = replace(WHOLE, counts=counts, lungs=False)
    assert ask(170.0, proof=unproven, sending=sending) == Ready("no new image for 60 s")


def test_images_that_the_archive_has_and_we_have_not_are_waited_for():
    more = replace(WHOLE, counts=Counts.MORE)
    assert ask(170.0, proof=more) == LookAgainAt(710.0, "slices are missing that may still arrive")
    assert ask(710.0, proof=more) == Ready("no new image for 600 s")


def test_a_count_of_other_images_than_these_is_forgotten():
    stale = replace(WHOLE, counts=Counts.MORE, images_at=100.0)
    assert ask(170.0, proof=stale) == Ready("no new image for 60 s")


@given(now=st.floats(100, 1e6), last=st.floats(100, 1e6), not_before=st.none() | st.floats(100, 1e6))
def test_looking_again_at_the_named_time_gives_an_answer(now, last, not_before):
    answer = ask(now, last=last, not_before=not_before)
    if isinstance(answer, LookAgainAt):
        assert answer.at > now
        assert isinstance(ask(answer.at, last=last, not_before=not_before), Ready)

"""T11: no scan, and no person, is in two of training, validation and test; made wrongly, it fails loudly."""

from __future__ import annotations

from dataclasses import replace

import pytest

from training.folds import Fold, LeakError, Member, check, divide, refuse_seen


def members(subsets: int, each: int = 3) -> list[Member]:
    return [Member(f"uid-{s}-{k}", f"person-{s}-{k}", s) for s in range(subsets) for k in range(each)]


def test_a_fold_tests_on_its_subset_validates_on_the_next_and_trains_on_the_rest():
    folds = divide(members(10))
    assert [f.number for f in folds] == list(range(10))
    last = folds[9]
    assert {u.split("-")[1] for u in last.test} == {"9"}
    assert {u.split("-")[1] for u in last.validation} == {"0"}
    assert {u.split("-")[1] for u in last.train} == {str(s) for s in range(1, 9)}


def test_every_scan_is_tested_exactly_once():
    everyone = members(10)
    tested = [uid for fold in divide(everyone) for uid in fold.test]
    assert sorted(tested) == sorted(m.uid for m in everyone)


@pytest.mark.parametrize("subsets", [2, 3, 10])
def test_training_validation_and_test_share_no_scan(subsets: int):
    for fold in divide(members(subsets)):
        assert fold.train
        assert fold.validation
        assert not set(fold.train) & set(fold.validation)
        assert not set(fold.test) & set(fold.seen)


def test_with_two_subsets_a_whole_person_validates():
    everyone = [
        Member(f"uid-{s}-{p}-{k}", f"person-{s}-{p}", s) for s in (0, 1) for p in range(4) for k in range(2)
    ]
    fold = divide(everyone)[0]
    assert len({u.rsplit("-", 1)[0] for u in fold.validation}) == 1
    assert len(fold.validation) == 2
    assert len(fold.train) == 6


def test_with_two_subsets_somebody_with_nodules_validates():
    everyone = [Member(f"uid-{s}-{k}", f"person-{s}-{k}", s, nodules=int(k == 2)) for s in (0, 1) for k in range(5)]
    assert [fold.validation for fold in divide(everyone)] == [("uid-1-2",), ("uid-0-2",)]


def test_a_person_with_scans_in_two_subsets_is_refused_by_name():
    everyone = [*members(3), Member("uid-again", "person-0-0", 1)]
    with pytest.raises(LeakError, match="of the same person"):
        divide(everyone)


def test_a_fold_that_tests_what_it_trains_on_is_refused():
    fold = divide(members(4))[0]
    wrong = replace(fold, train=(*fold.train, fold.test[0]))
    with pytest.raises(LeakError, match=fold.test[0]):
        check(wrong, {})


def test_a_fold_that_validates_on_the_tested_person_is_refused():
    fold = Fold(0, ("a",), ("b",), ("c",))
    with pytest.raises(LeakError):
        check(fold, {"b": "somebody", "c": "somebody"})


def test_a_model_may_not_judge_what_it_saw_nor_another_scan_of_that_person():
    refuse_seen(["t"], ["a", "b"], {"t": "x", "a": "y"})
    with pytest.raises(LeakError, match="t was seen"):
        refuse_seen(["t"], ["a", "t"], {})
    with pytest.raises(LeakError, match="same person"):
        refuse_seen(["t"], ["a"], {"t": "x", "a": "x"})


def test_one_subset_alone_cannot_be_divided():
    with pytest.raises(ValueError, match="two subsets at least, found 1"):
        divide(members(1))

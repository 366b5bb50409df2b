"""What ``make soak`` calls flat: the last quarter beside the first one after the warm-up."""

from __future__ import annotations

import pytest

from tests.soak.samples import Sample, judge


def samples(*, mib=100.0, files=20.0, threads=9.0, kib_a_study=20.0, wal_mib=4.0, oldest_s=10.0):
    """Four hours in which something grows a little with each sample: from the value given to it plus its growth."""

    def at(value, number):
        start, growth = value if isinstance(value, tuple) else (value, 0.0)
        return start + growth * number / 960

    worker = {"mib": mib, "files": files, "threads": threads}
    return [
        Sample(
            at_s=15.0 * number,
            processes={"worker": {name: at(value, number) for name, value in worker.items()}},
            database_mib=sum(at(kib_a_study, k) for k in range(number)) / 1024,
            wal_mib=at(wal_mib, number),
            disk_mib=100.0,
            studies=number,
            oldest_s=at(oldest_s, number),
        )
        for number in range(960)
    ]


def growing(taken):
    return [line.what for line in judge(taken) if not line.is_flat]


def test_a_node_that_stays_as_it_is_is_flat():
    assert growing(samples()) == []
    assert {line.what for line in judge(samples())} >= {"worker: memory, MiB", "write-ahead log: MiB, largest"}


@pytest.mark.parametrize(
    ("what", "value", "line"),
    [
        ("mib", (100.0, 12.0), "worker: memory, MiB"),
        ("files", (20.0, 12.0), "worker: open files"),
        ("threads", (9.0, 12.0), "worker: threads"),
        ("kib_a_study", (20.0, 20.0), "database: KiB for each new study"),
        ("wal_mib", (4.0, 100.0), "write-ahead log: MiB, largest"),
        ("oldest_s", (10.0, 200.0), "oldest waiting study: seconds"),
    ],
)
def test_each_thing_that_grows_is_named(what, value, line):
    assert growing(samples(**{what: value})) == [line]


def test_a_run_of_a_few_minutes_is_not_judged():
    assert judge(samples()[:30]) == []
    assert judge([]) == []

"""The supervisor starts a process again for other settings, and does without the one that others look at."""

from __future__ import annotations

import signal
import sys
import threading

from scp_node.supervisor import Service, supervise

SLEEPER = (sys.executable, "-S", "-c", "import time; time.sleep(60)")


def exiting(code):
    return (sys.executable, "-S", "-c", f"raise SystemExit({code})")


def test_a_process_that_leaves_for_other_settings_is_started_at_once_and_has_not_failed():
    service = Service("work", SLEEPER)
    for now in (10.0, 11.0, 12.0, 13.0, 14.0, 15.0):
        assert service.after_exit(76, now) is None
        assert service.start_again_at == now
    assert service.after_exit(-signal.SIGHUP, 16.0) is None
    assert (len(service.crashes), service.pause_s) == (0, 1.0)


def test_the_node_goes_on_without_a_process_that_is_not_essential():
    stop, turns = threading.Event(), []
    minor = Service("metrics", exiting(78), essential=False)

    def each_turn():
        turns.append(minor.start_again_at)
        if minor.start_again_at:
            stop.set()

    sleeper = Service("listen", SLEEPER)
    assert supervise([sleeper, minor], stop, stop_within_s=5, each_turn=each_turn) == 0
    assert sleeper.process.returncode == -signal.SIGTERM
    assert minor.start_again_at > 0


def test_what_is_not_essential_stops_last_and_sees_the_end_of_the_others():
    stop, seen = threading.Event(), []
    stop.set()
    listener = Service("listen", SLEEPER)
    watcher = Service("metrics", SLEEPER, essential=False)
    for service in (listener, watcher):
        service.start(0.0)
    supervise(
        [watcher, listener],
        stop,
        stop_within_s=5,
        before_the_last=lambda: seen.append((listener.process.poll(), watcher.process.poll())),
    )
    assert seen == [(-signal.SIGTERM, None)]
    assert watcher.process.returncode == -signal.SIGTERM

"""What every child process of ours does first: it dies with its parent, within its memory limit.

The child sets its own death signal (a hook between fork and exec is unsafe once there are threads) and keeps its
protocol pipe apart from standard output, into which any library may print.
"""

from __future__ import annotations

import ctypes
import os
import resource
import runpy
import signal
import sys
import traceback
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Let the kernel kill this process when the thread that started it ends.

    Parameters
    ----------
    parent_pid
        Who started us. When that process is gone already, we leave at once.

    Notes
    -----
    The signal follows the parent's *thread*: a long-lived child is started from a long-lived thread.
    Elsewhere than on Linux only the check of the parent is made.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit(1)


def leave_stopping_to_the_parent() -> None:
    """Ignore what a terminal or a service manager sends to every process of the node at once.

    The parent decides whether running work may finish, then closes our pipe or dies.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def limit_memory(mib: int) -> None:
    """Cap the address space of this process; mebibytes, 0 for no cap."""
    if mib > 0:
        resource.setrlimit(resource.RLIMIT_AS, (mib * 2**20, mib * 2**20))


def keep_answers_apart() -> int:
    """Give a descriptor for answers to the parent; whatever is printed goes to standard error from now on."""
    sys.stdout.flush()
    answers = os.dup(1)
    os.dup2(2, 1)
    return answers


def describe(fault: BaseException) -> str:
    """Name a fault without its message, which may quote a header: its kind, and where it arose."""
    frames = traceback.extract_tb(fault.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    errno = f" {os.strerror(fault.errno)}" if isinstance(fault, OSError) and fault.errno else ""
    return f"{type(fault).__name__}{errno}{where}"


def main() -> None:
    """Run ``MODULE ARGUMENTS`` as ``python -m`` would, dying with the parent: ``scp_node.child PID MODULE ...``."""
    parent_pid, module, *arguments = sys.argv[1:]
    die_with_parent(int(parent_pid))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

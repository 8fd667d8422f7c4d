"""A pool of forks: parts of one job run at the same time, each in a process forked after TVM was imported.

TVM and LLVM hold Python's lock while they compile, so threads would take turns.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

Work = Callable[[], Any]
MOST = 4


def cores(wanted: int) -> int:
    """How many parts are worth while: as many as wanted, and as this process has cores, but not more than MOST.

    One where forking a process that has loaded libraries is not safe.
    """
    if not hasattr(os, "sched_getaffinity"):  # absent where system libraries break in forked processes
        return 1
    return max(1, min(wanted, len(os.sched_getaffinity(0)), MOST))


def run_forked(works: Sequence[Work]) -> list[Any]:
    """Does all works at once, the first in this process; returns their results, which are JSON, in order.

    Where a part dies, this process dies by the same signal, so the failure of one part is that of the whole job.
    """
    first, *others = works
    children = [_forked(work) for work in others]
    try:
        results = [first()]
    except BaseException:
        for child, _ in children:
            os.kill(child, signal.SIGTERM)
        raise
    return results + [_joined(*child) for child in children]


def _forked(work: Work) -> tuple[int, int]:
    """The process that does a work, and where its result can be read."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    os.close(reading)
    _do(work, writing)


def _do(work: Work, writing: int) -> NoReturn:
    code = 1
    try:
        with os.fdopen(writing, "w") as out:
            json.dump(work(), out)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _joined(child: int, reading: int) -> Any:
    with os.fdopen(reading) as text:
        message = text.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        os.kill(os.getpid(), -code)
    if code:
        sys.exit(code)
    return json.loads(message)

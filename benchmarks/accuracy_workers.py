"""Worker processes of the accuracy benchmark: one thread each, of one code, and gone when their parent is.

In: jobs (a function and its arguments, by title). Out: their results as they finish. Invariants: workers run the code
that the parent named its results by; the first error ends the run and what is finished stays; a parent killed with -9
or by Ctrl-C leaves no worker behind.
"""

from __future__ import annotations

import copyreg
import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from benchmarks.accuracy_keys import code
from serving.errors import ConfigError, StrikeforgeError

log = logging.getLogger("strikeforge.accuracy")

ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")
WAIT_SECONDS = 1.0
Jobs = Mapping[str, tuple[Any, ...]]  # title: function, arguments


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes (nothing of this one's threads or memory goes along)."""
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(code(),)) as pool:
        try:
            yield pool
        except BaseException:  # Ctrl-C too: what runs is given up, as a kill would
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.kill()
            raise


def as_done(pool: ProcessPoolExecutor, jobs: Jobs) -> Iterator[tuple[str, Any]]:
    """Titles and results, as the jobs finish; raises what a job raised, StrikeforgeError where a process died."""
    titles = {pool.submit(job[0], *job[1:]): title for title, job in jobs.items()}
    pending = set(titles)
    while pending:  # a wait without a limit can't be relied on to notice Ctrl-C once native libraries are loaded
        finished, pending = wait(pending, timeout=WAIT_SECONDS, return_when=FIRST_COMPLETED)
        for future in finished:
            yield titles[future], _result(future, titles[future])


def _result(future: Future[Any], title: str) -> Any:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise StrikeforgeError(
            "a worker process ended before its work was done (what it said stands above; killed, or out of "
            "memory: try --workers 1); what is finished is kept, run the same command again"
        ) from error
    except BaseException:
        log.error("%s failed; what is finished is kept", title)
        raise


def all_of(pool: ProcessPoolExecutor, jobs: Jobs) -> None:
    """Do all jobs, saying when each is done."""
    start = time.monotonic()
    for title, _ in as_done(pool, jobs):
        log.info("%s: done after %.0f s", title, time.monotonic() - start)


def refuse_changed_code(named: Mapping[str, str]) -> None:
    """Raise StrikeforgeError where the code on disk isn't the code by which results are named."""
    changed = [stage for stage, digest in code().items() if named[stage] != digest]
    if changed:
        raise StrikeforgeError(f"the code changed while the run began ({', '.join(changed)}): run it again")


def _begin(named: Mapping[str, str]) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    copyreg.pickle(ConfigError, _by_problems)  # else it comes back with its text taken for the list
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_after, args=(parent.join,), daemon=True).start()
    import pipelines.features
    import pipelines.ingest  # noqa: F401  all that works is loaded before the code is looked at

    refuse_changed_code(named)


def _by_problems(error: ConfigError) -> tuple[type[ConfigError], tuple[list[str]]]:
    return ConfigError, (error.problems,)


def _end_after(joined: Callable[[], None]) -> None:
    joined()
    os._exit(1)

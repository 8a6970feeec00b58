"""The settings of a sweep, measured by several processes beside each other: small batches fill no second core."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import torch

S = TypeVar("S")
R = TypeVar("R")


def beside(make: Callable[[], Callable[[S], R]], settings: Sequence[S], workers: int) -> Iterator[R]:
    """What `make()` says of each setting, in their order, computed in `workers` processes of one torch thread each.

    `make` is called once in each process. It, the settings and what comes of them must survive pickling. Those that
    nobody waits for any more are not begun, and a worker whose parent was killed ends.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(make,))
    try:
        yield from pool.map(_measured, settings)
    finally:
        pool.shutdown(cancel_futures=True)


_measure: Callable[[Any], Any]  # what `make` made in this process


def _begin(make: Callable[[], Callable[[Any], Any]]) -> None:
    global _measure
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _measure = make()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for its next setting for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _measured(setting: Any) -> Any:
    return _measure(setting)

"""Verdicts of many programs, by several processes.

Apart from `__main__`, since a process that is spawned does not import that of a package.
"""

import multiprocessing
from collections.abc import Iterator, Sequence

import torch

from .generator import describe
from .verdicts import Verdict, verdict

Job = tuple[int, int, bool]
"""Seed, number, and whether to compile."""


def verdicts(jobs: Sequence[Job], workers: int) -> Iterator[tuple[int, Verdict]]:
    """Yields number and verdict of every program, in any order."""
    torch.set_num_threads(1)
    if workers == 1:
        yield from map(_one, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.imap_unordered(_one, jobs, chunksize=10)


def _one(job: Job) -> tuple[int, Verdict]:
    seed, number, compile = job
    return number, verdict(describe(seed, number, compile=compile))

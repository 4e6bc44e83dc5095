"""Where the runs of a sweep are trained: worker processes on this machine, or a Dask or Ray cluster, through joblib."""

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from joblib import Parallel, delayed, parallel_config

from ppgen.errors import ConfigError, PpgenError
from ppgen.jobs import leave_signals_to_the_sweep, work
from ppgen.runs import Record

BACKENDS = ("loky", "dask", "ray")
ADDRESSES = {"dask": "DASK_SCHEDULER_ADDRESS", "ray": "RAY_ADDRESS"}
"""Where each library's own users keep the address of their cluster."""


def scheduler_of(backend: str, scheduler: str | None) -> str | None:
    """Returns the address of a cluster that was named; None where the sweep stays on this machine.

    Raises:
        ConfigError: if there is no such backend, its library is not installed, or it knows no cluster.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"expected --backend {', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}; got '{backend}'")
    if backend == "loky":
        if scheduler is not None:
            raise ConfigError("--scheduler needs --backend dask or --backend ray: loky works on this machine only")
        return None
    _library(backend)
    return scheduler or os.environ.get(ADDRESSES[backend]) or None


@contextlib.contextmanager
def started(backend: str, *, jobs: int | None, threads: int, scheduler: str | None) -> Iterator["Workers"]:
    """Starts worker processes, or connects to a cluster.

    Args:
        backend: one of `BACKENDS`.
        jobs: how many runs at a time; None is all that a cluster can do.
        threads: of each.
        scheduler: address of a cluster.

    Raises:
        ConfigError: if the cluster cannot be used.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # loky replaces a worker that has grown; nothing that a user should mend
        warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given")
        if backend == "loky":
            settings: dict[str, Any] = {
                "inner_max_num_threads": threads,
                "initializer": leave_signals_to_the_sweep,
                "idle_worker_timeout": 20,  # seconds; then those of a sweep that was killed go too
            }
            stack.enter_context(parallel_config("loky", n_jobs=jobs, **settings))
        elif backend == "dask":
            stack.enter_context(_dask(jobs, scheduler))
            stack.enter_context(parallel_config("dask", n_jobs=jobs or -1))
        else:
            stack.enter_context(_ray(jobs, scheduler))
            stack.enter_context(parallel_config("ray", n_jobs=jobs or -1))
        yield Workers(backend)


class Workers:
    """Worker processes, wherever they are; made by `started`."""

    def __init__(self, backend: str) -> None:
        self._backend = backend

    def run(self, tasks: Iterable[dict[str, Any]]) -> Iterator[Record]:
        """Runs `work` on keyword arguments; yields ``{**outcome, "folder": ...}`` as they end, with Ray all at the end.

        Raises:
            PpgenError: if a worker was killed.
        """
        # Ray's pool knows no results before the last
        order = "list" if self._backend == "ray" else "generator_unordered"
        try:
            yield from Parallel(return_as=order, batch_size=1)(delayed(_named)(task) for task in tasks)
        except BrokenProcessPool as error:
            raise PpgenError(
                "a worker process was killed, perhaps for want of memory: repeat the command to go on where the runs"
                " stopped, with fewer --jobs if memory ran out"
            ) from error
        except Exception as error:  # `work` raises none: it is of the cluster
            if self._backend == "loky":
                raise
            what = f"{type(error).__name__}: {error}"
            raise PpgenError(f"{self._backend} failed ({what}): repeat the command to go on") from error


def _named(task: dict[str, Any]) -> Record:
    return {**work(**task), "folder": task["folder"]}


@contextlib.contextmanager
def _dask(jobs: int | None, scheduler: str | None) -> Iterator[None]:
    distributed = _library("dask")
    with contextlib.ExitStack() as stack:
        if scheduler is None:
            options = {"n_workers": jobs, "threads_per_worker": 1, "memory_limit": 0, "dashboard_address": None}
            cluster = stack.enter_context(distributed.LocalCluster(**options))
            client = stack.enter_context(distributed.Client(cluster))
            client.run(leave_signals_to_the_sweep)  # one that Ctrl-C killed would be waited for without end
        else:
            try:
                client = stack.enter_context(distributed.Client(scheduler, timeout=10))
            except (OSError, ValueError) as error:
                raise ConfigError(f"cannot reach a Dask scheduler at '{scheduler}': {error}") from error
            # two runs in one process would share its random streams
            if any(count > 1 for count in client.nthreads().values()):
                raise ConfigError("expected Dask workers of one thread each: start them with --nthreads 1")
        yield


@contextlib.contextmanager
def _ray(jobs: int | None, scheduler: str | None) -> Iterator[None]:
    ray = _library("ray")
    options: dict[str, Any] = {"num_cpus": jobs, "include_dashboard": False} if scheduler is None else {}
    try:
        ray.init(address=scheduler or "local", log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"cannot start or reach Ray at '{scheduler or 'this machine'}': {error}") from error
    try:
        ray.util.joblib.register_ray()
        yield
    finally:
        ray.shutdown()


def _library(backend: str) -> Any:
    # not "ray" alone, which a folder of that name would pass for
    needed = {"dask": "dask.distributed", "ray": "ray.util.joblib"}[backend]
    try:
        found = importlib.import_module(needed)
    except ImportError as error:
        raise ConfigError(f"--backend {backend} is not installed: pip install 'ppgen[{backend}]'") from error
    return sys.modules["ray"] if backend == "ray" else found

"""Many runs on one machine, several at a time: one that fails, or dies, stops no other."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import cycle, islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Generic, NamedTuple, TypeVar

import torch
from tqdm import tqdm

Result = TypeVar("Result")


def run_concurrently(
    tasks: Mapping[str, Callable[[], Result]],
    finish: Callable[[str, Result], str | None],
    workers: int,
    done: int = 0,
) -> dict[str, str]:
    """The errors of the tasks that failed, by name.

    Args:
        tasks: what each run waits for, by its name.
        finish: called with a run's name and its task's result as soon as it ends; returns what
            was wrong with it, if anything.
        workers: runs at the same time.
        done: how many runs there were before, for the progress bar.
    """
    errors = {}
    runners = ThreadPoolExecutor(workers)
    futures = {runners.submit(task): name for name, task in tasks.items()}
    bar = tqdm(as_completed(futures), initial=done, total=done + len(futures), unit="run")
    try:
        for future in bar:
            name = futures[future]
            bar.set_description(name)
            if error := future.exception() or finish(name, future.result()):
                errors[name] = str(error)
                bar.write(f"{name} failed: {error}")
    finally:
        runners.shutdown(cancel_futures=True)
    return errors


class PoolJob(NamedTuple, Generic[Result]):
    """One run of a pool.

    Attributes:
        run_dir: the run directory, which gets what the run prints, as log.txt.
        perform: makes the run, in another process.
        one_device: the run has one device.
    """

    run_dir: Path
    perform: Callable[[], Result]
    one_device: bool = True


def run_logged(job: PoolJob[Result]) -> Result:
    """Make one run, whose output is added to log.txt in its run directory; return its result."""
    job.run_dir.mkdir(parents=True, exist_ok=True)
    try:
        with (
            (job.run_dir / "log.txt").open("a", encoding="utf-8") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            return job.perform()
    finally:
        if (parent := parent_process()) and not parent.is_alive():
            os._exit(128 + signal.SIGTERM)  # nobody waits for a result, or has more to do


def run_jobs(
    jobs: Mapping[str, PoolJob[Result]],
    finish: Callable[[str, Result], str | None],
    workers: int,
    done: int = 0,
) -> dict[str, str]:
    """Make runs side by side, and return the errors of those that failed, by name.

    The processor's cores are shared out among the workers: small networks gain more from runs side
    by side than from threads. So are the GPUs, where each run has one device. Where this process
    ends, however it does, a run ends as at SIGTERM.

    Args:
        jobs: by the runs' names.
        finish, workers, done: see `run_concurrently`.
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
    alone = all(job.one_device for job in jobs.values())
    devices: list[str | None] = [*(visible_gpus() if alone else [])] or [None]
    idle: SimpleQueue[tuple[ProcessPoolExecutor, str | None]] = SimpleQueue()  # of one process each
    for device in islice(cycle(devices), workers):
        idle.put((start_worker(threads, device), device))

    def run(job: PoolJob[Result]) -> Result:
        pool, device = idle.get()
        try:
            return pool.submit(run_logged, job).result()
        except BrokenProcessPool as error:
            pool = start_worker(threads, device)
            raise RuntimeError(f"its process died (out of memory?): {job.run_dir}") from error
        finally:
            idle.put((pool, device))

    try:
        tasks = {name: partial(run, job) for name, job in jobs.items()}
        return run_concurrently(tasks, finish, workers, done)
    finally:
        for _ in range(workers):
            idle.get()[0].shutdown()


def visible_gpus() -> list[str]:
    """The names of the GPUs, as CUDA_VISIBLE_DEVICES has them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]


def start_worker(threads: int, device: str | None) -> ProcessPoolExecutor:
    """One process for run after run, so that they do not import everything anew."""
    spawn = get_context("spawn")
    return ProcessPoolExecutor(1, spawn, initializer=init_worker, initargs=(threads, device))


def init_worker(threads: int, device: str | None) -> None:
    """Make a process of the pool ready: its share of the machine, and an end with the first's."""
    torch.set_num_threads(threads)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device

    def follow() -> None:
        if parent := parent_process():
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=follow, daemon=True).start()

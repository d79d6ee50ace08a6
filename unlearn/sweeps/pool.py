"""Make several runs at a time on one machine; a run that fails or dies stops no other run."""

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
    """Run tasks side by side in threads, and return the errors of those that failed, by name.

    The progress bar names the runs that are going on.

    Args:
        tasks: a function for each run, by the run's name.
        finish: a function that is called with a run's name and its task's result as soon as the
            task ends, and returns an error or None.
        workers: the number of tasks at the same time.
        done: the number of runs that were finished before, for the progress bar.
    """
    errors: dict[str, str] = {}
    running: dict[str, None] = {}  # in the order of their beginning
    bar = tqdm(initial=done, total=done + len(tasks), unit="run")

    def show_running() -> None:
        bar.set_description(", ".join(Path(name).name for name in list(running)))

    def run(name: str) -> Result:
        running[name] = None
        show_running()
        try:
            return tasks[name]()
        finally:
            del running[name]

    runners = ThreadPoolExecutor(workers)
    futures = {runners.submit(run, name): name for name in tasks}
    try:
        for future in as_completed(futures):
            name = futures[future]
            if error := future.exception() or finish(name, future.result()):
                errors[name] = str(error)
                bar.write(f"{name} failed: {error}")
            show_running()
            bar.update()
    finally:
        runners.shutdown(cancel_futures=True)
        bar.close()
    return errors


class PoolJob(NamedTuple, Generic[Result]):
    """One run of a pool.

    Attributes:
        run_dir: the run directory, whose log.txt gets what the run prints.
        perform: the function that makes the run, in another process.
        one_device: whether the run takes one device alone.
    """

    run_dir: Path
    perform: Callable[[], Result]
    one_device: bool = True


def run_logged(job: PoolJob[Result]) -> Result:
    """Make one run, add its output to log.txt of its run directory, and return its result."""
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
            os._exit(128 + signal.SIGTERM)  # no process waits for this one any more


def run_jobs(
    jobs: Mapping[str, PoolJob[Result]],
    finish: Callable[[str, Result], str | None],
    workers: int,
    done: int = 0,
) -> dict[str, str]:
    """Make runs side by side, and return the errors of those that failed, by name.

    The processor's cores are shared out among the workers: small networks gain more from runs side
    by side than from threads. The GPUs are shared out too, if each run takes one device. When this
    process ends, for whatever reason, its runs end as at SIGTERM.

    Args:
        jobs: the jobs, by the runs' names.
        finish: the function of `run_concurrently`.
        workers: the number of runs at the same time, each in a process of its own.
        done: the number of runs that were finished before, for the progress bar.
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
    alone = all(job.one_device for job in jobs.values())
    devices: list[str | None] = [*(visible_gpus() if alone else [])] or [None]
    idle: SimpleQueue[tuple[ProcessPoolExecutor, str | None]] = SimpleQueue()  # one process each
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
    """Return the names of the GPUs, as CUDA_VISIBLE_DEVICES holds them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]


def start_worker(threads: int, device: str | None) -> ProcessPoolExecutor:
    """Start a process that makes run after run, so that packages are imported once.

    Args:
        threads: the number of torch's threads.
        device: the GPU for CUDA_VISIBLE_DEVICES; None: as this process has it.
    """
    spawn = get_context("spawn")
    return ProcessPoolExecutor(1, spawn, initializer=init_worker, initargs=(threads, device))


def init_worker(threads: int, device: str | None) -> None:
    """Give a process of the pool its share of the machine, and end it when its parent ends.

    Args:
        threads: the number of torch's threads.
        device: the GPU for CUDA_VISIBLE_DEVICES; None: as the parent has it.
    """
    torch.set_num_threads(threads)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device

    def follow() -> None:
        if parent := parent_process():
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=follow, daemon=True).start()

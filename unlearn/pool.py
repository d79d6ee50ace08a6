"""Many runs on one machine, several at a time: one that fails, or dies, stops no other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

import torch
from omegaconf import DictConfig
from tqdm import tqdm

Result = TypeVar("Result")


def side_by_side(
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


def work(job: Callable[[DictConfig], Result], config: DictConfig) -> Result:
    """One run, whose output is added to log.txt in its run directory; returns what `job` does."""
    run = Path(config.run_dir)
    run.mkdir(parents=True, exist_ok=True)
    with (
        (run / "log.txt").open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        return job(config)


def run_jobs(
    configs: dict[str, DictConfig],
    finish: Callable[[str, Result], str | None],
    workers: int,
    done: int = 0,
    *,
    job: Callable[[DictConfig], Result],
) -> dict[str, str]:
    """The errors of the runs that failed, by name.

    The processor's cores are shared out among the workers: small networks gain more from runs side
    by side than from threads.

    Args:
        configs: of each run, by its name.
        finish, workers, done: see `side_by_side`.
        job: makes a run of a config, in its run directory.
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
    idle: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()  # of one process each
    for _ in range(workers):
        idle.put(process(threads))

    def run(config: DictConfig) -> Result:
        pool = idle.get()
        try:
            return pool.submit(work, job, config).result()
        except BrokenProcessPool as error:
            pool = process(threads)
            raise RuntimeError(f"its process died (out of memory?): {config.run_dir}") from error
        finally:
            idle.put(pool)

    try:
        tasks = {name: partial(run, config) for name, config in configs.items()}
        return side_by_side(tasks, finish, workers, done)
    finally:
        for _ in range(workers):
            idle.get().shutdown()


def process(threads: int) -> ProcessPoolExecutor:
    """One process for run after run, so that they do not import everything anew."""
    spawn = get_context("spawn")
    return ProcessPoolExecutor(1, spawn, initializer=torch.set_num_threads, initargs=(threads,))

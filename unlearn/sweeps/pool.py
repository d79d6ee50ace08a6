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
from typing import TypeVar

import torch
from omegaconf import DictConfig, OmegaConf
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


def run_logged(job: Callable[[DictConfig], Result], config: DictConfig) -> Result:
    """One run, whose output is added to log.txt in its run directory; returns what `job` does."""
    run = Path(config.run_dir)
    run.mkdir(parents=True, exist_ok=True)
    try:
        with (
            (run / "log.txt").open("a", encoding="utf-8") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
        ):
            return job(config)
    finally:
        if (parent := parent_process()) and not parent.is_alive():
            os._exit(128 + signal.SIGTERM)  # nobody waits for a result, or has more to do


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
    by side than from threads. So are the GPUs, where each run has one device. Where this process
    ends, however it does, a run ends as at SIGTERM.

    Args:
        configs: of each run, by its name.
        finish, workers, done: see `run_concurrently`.
        job: makes a run of a config, in its run directory.
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
    asked = {str(OmegaConf.select(config, "trainer.devices")) for config in configs.values()}
    devices: list[str | None] = [*(visible_gpus() if asked == {"1"} else [])] or [None]
    idle: SimpleQueue[tuple[ProcessPoolExecutor, str | None]] = SimpleQueue()  # of one process each
    for device in islice(cycle(devices), workers):
        idle.put((start_worker(threads, device), device))

    def run(config: DictConfig) -> Result:
        pool, device = idle.get()
        try:
            return pool.submit(run_logged, job, config).result()
        except BrokenProcessPool as error:
            pool = start_worker(threads, device)
            raise RuntimeError(f"its process died (out of memory?): {config.run_dir}") from error
        finally:
            idle.put((pool, device))

    try:
        tasks = {name: partial(run, config) for name, config in configs.items()}
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

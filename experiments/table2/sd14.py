"""Run Table 2 on Stable Diffusion 1.4: every row on every target, each run in a process of its own.

    python -m experiments.table2.sd14 [--devices 8] [--limit 1] [--rows doco,uce] [KEY=VALUE ...]

A run is `unlearn train` and then `unlearn evaluate` under the protocol of SPM that sd14.yaml names.
KEY=VALUE goes to every `unlearn train`, protocol.KEY=VALUE to every `unlearn evaluate`, there as
evaluation.KEY. Runs lie in runs/table2-sd14, with another --limit or other values in a folder of
their own. What has ended is not run again, so a killed call goes on where it stopped.

model.random_weights=true takes all rows through without a download, at the sizes under `random` in
sd14.yaml and on prompts of our own: it shows that the path runs, and nothing of any method.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import queue
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from experiments.command import end, positive
from experiments.table2.published import protocol_of, render
from experiments.table2.run import Job, jobs_of, read_rows
from unlearn.concepts.vocabulary import load_vocabulary
from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.config.run_config import RunConfig
from unlearn.sweeps.pool import run_concurrently, visible_gpus

HERE = Path(__file__).parent
RANDOM = "model.random_weights=true"


class Call(NamedTuple):
    """What the command line asks of every run.

    Attributes:
        folder: where the runs lie.
        overrides: of `unlearn train`, and with the prefix "protocol." of `unlearn evaluate`.
        limit: prompts a subject of the protocols; None: all.
    """

    folder: Path
    overrides: list[str]
    limit: int | None = None

    @property
    def random(self) -> bool:
        """Whether the weights are random."""
        return any(override.lower() == RANDOM for override in self.overrides)


def read_plan(limit: int | None = None) -> dict[str, Any]:
    """The targets, the rows and how they run, with the first `limit` targets alone."""
    plan = read_rows(HERE / "sd14.yaml")
    plan["targets"] = plan["targets"][:limit]
    plan["ablation_targets"] = [t for t in plan["ablation_targets"] if t in plan["targets"]]
    return plan


def folder_of(overrides: list[str], limit: int | None) -> Path:
    """The folder of a call's runs: figures of different settings are never mixed."""
    facts = json.dumps([sorted(overrides), limit]).encode()
    own = f"-{hashlib.blake2b(facts, digest_size=4).hexdigest()}" if overrides or limit else ""
    return Path("runs") / f"table2-sd14{own}"


def overrides_of(job: Job, plan: dict[str, Any], call: Call) -> list[str]:
    """A run's overrides, as in `Call`; later ones win."""
    small = plan["random"] if call.random else {"overrides": []}
    chosen = [f"concept={job.concept}", *plan["overrides"], *job.overrides, *small["overrides"]]
    if call.random:
        config = compose(of_train([*chosen, *call.overrides]))
        chosen += [f"steps={small['steps']}"] * bool(config.steps)
        own = small["trained" if config.steps else "at_inference"]
        chosen += [f"method.{k}={v}" for k, v in own.items() if k in config.method]
    return [*chosen, *call.overrides, f"seed={job.seed}", f"run_dir={call.folder / job.name}"]


def of_train(overrides: list[str]) -> list[str]:
    """Those of `unlearn train`."""
    return [o for o in overrides if not o.startswith("protocol.")]


def config_of(job: Job, plan: dict[str, Any], call: Call) -> RunConfig:
    """What `unlearn train` makes of the run's overrides.

    Raises:
        ValueError: see `parse_config`.
    """
    return parse_config(compose(of_train(overrides_of(job, plan, call))))


def evaluation_of(job: Job, plan: dict[str, Any], call: Call) -> list[str]:
    """The overrides of `unlearn evaluate` that choose a run's protocol and change it."""
    name = protocol_of(job.concept, plan)
    chosen = [f"evaluation={name}"] + [f"evaluation.limit={call.limit}"] * bool(call.limit)
    if call.random:
        chosen += ["evaluation.sha256=null", f"evaluation.prompts_file={write_prompts(name, call)}"]
    overrides = overrides_of(job, plan, call)
    of_protocol = [o for o in overrides if o.startswith("protocol.")]
    return [*chosen, *(o.replace("protocol", "evaluation", 1) for o in of_protocol)]


def write_prompts(protocol: str, call: Call) -> Path:
    """A folder of files like a protocol's, with prompts of our own."""
    folder = call.folder / "prompts"
    folder.mkdir(parents=True, exist_ok=True)
    templates = list(load_vocabulary().templates["seen"])
    evaluation = compose([f"evaluation={protocol}"], "evaluate").evaluation
    for file in map(Path, evaluation.sha256):
        rows = [f"{template.format(file.stem)},{i}" for i, template in enumerate(templates)]
        table = "\n".join(["prompt,evaluation_seed", *rows, ""])
        source = f"imagenet_templates = {templates!r}\n"
        text = source if evaluation.format == "templates" else table
        (folder / file.name).write_text(text, encoding="utf-8")
    return folder


def commands_of(job: Job, plan: dict[str, Any], call: Call) -> list[list[str]]:
    """What of a run is missing, as arguments of `unlearn`."""
    run = call.folder / job.name
    protocol = protocol_of(job.concept, plan)
    if (run / "evaluation" / f"{protocol}.json").exists():
        return []
    evaluate = ["evaluate", str(run), *evaluation_of(job, plan, call)]
    if (run / "result.json").exists():
        return [evaluate]
    return [["train", *of_train(overrides_of(job, plan, call))], evaluate]


def check_jobs(jobs: list[Job], plan: dict[str, Any], call: Call) -> None:
    """Refuse, before anything runs, overrides that a row's first run could not take.

    Raises:
        ValueError: see `parse_config`.
    """
    for job in {job.row: job for job in reversed(jobs)}.values():
        config_of(job, plan, call)
        compose(evaluation_of(job, plan, call), "evaluate")


def run_commands(
    commands: list[list[str]],
    log: Path,
    devices: queue.Queue[str],
    children: set[subprocess.Popen[bytes]],
) -> None:
    """Run them one after the other on a free GPU.

    Args:
        commands: arguments of `unlearn`.
        log: gets what they print.
        devices: the GPUs that are free.
        children: holds the process at work.

    Raises:
        RuntimeError: one of them failed; with the last line that it printed.
    """
    device = devices.get()
    threads = max(1, (os.cpu_count() or 1) // (devices.maxsize or 1))
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "CUDA_VISIBLE_DEVICES": device}
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        for command in commands:
            with log.open("a", encoding="utf-8") as file:
                child = subprocess.Popen(
                    [sys.executable, "-m", "unlearn.cli.main", *command],
                    stdout=file, stderr=subprocess.STDOUT, env=environment,
                )  # fmt: skip
            children.add(child)
            child.wait()
            children.remove(child)
            if child.returncode:
                last = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
                raise RuntimeError(f"{''.join(last)} (all of it in {log})")
    finally:
        devices.put(device)


def run_all(
    jobs: list[Job], plan: dict[str, Any], call: Call, devices: list[str]
) -> dict[str, str]:
    """Run what is missing, one run a GPU at a time; returns the errors by run.

    SIGTERM goes to the processes of the runs too, and this one exits with 143 after them.
    """
    children: set[subprocess.Popen[bytes]] = set()

    def stop(number: int, _: object) -> None:
        for child in list(children):
            child.send_signal(number)
        sys.exit(128 + number)

    free: queue.Queue[str] = queue.Queue(len(devices))
    for device in devices:
        free.put(device)
    tasks = {
        job.name: partial(run_commands, missing, call.folder / job.name / "log.txt", free, children)
        for job in jobs
        if (missing := commands_of(job, plan, call))
    }
    before = signal.signal(signal.SIGTERM, stop)
    try:
        return run_concurrently(tasks, lambda *_: None, len(devices), len(jobs) - len(tasks))
    finally:
        signal.signal(signal.SIGTERM, before)


def visible(count: int) -> list[str]:
    """The first `count` GPUs, of those that CUDA_VISIBLE_DEVICES names if it is set.

    Raises:
        ValueError: there are fewer.
    """
    known = visible_gpus() or [
        str(i) for i in range(count)
    ]  # without a GPU, so many runs on the CPU
    if not 1 <= count <= len(known):
        raise ValueError(f"--devices={count}: from 1 to {len(known)} are there")
    return known[:count]


def main() -> None:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--devices", type=positive, default=1, help="runs at the same time, a GPU each"
    )
    parser.add_argument(
        "--limit", type=positive, help="the first N targets, and N prompts a subject"
    )
    parser.add_argument("--rows", help="names of sd14.yaml, with commas between; default: all")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    plan = read_plan(options.limit)
    rows = options.rows.split(",") if options.rows else list(plan["rows"])
    if unknown := [row for row in rows if row not in plan["rows"]]:
        parser.error(f"--rows: {unknown[0]!r} is none of {', '.join(plan['rows'])}")
    if other := [o for o in options.overrides if o.startswith("model=") and o != "model=sd14"]:
        parser.error(f"{other[0]}: the published figures are of Stable Diffusion 1.4, model=sd14")
    call = Call(folder_of(options.overrides, options.limit), options.overrides, options.limit)
    jobs = jobs_of(plan, "sd14", rows)
    try:
        devices = visible(options.devices)
        check_jobs(jobs, plan, call)
    except ValueError as error:
        parser.error(str(error).splitlines()[0])
    errors = run_all(jobs, plan, call, devices)
    print(render(call.folder, plan).read_text(encoding="utf-8"))
    end(errors)


if __name__ == "__main__":
    main()

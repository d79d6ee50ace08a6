"""Trains every method twice: once undisturbed, and once killed again and again at random moments.

Runs as a process of its own, `python -m tests.helpers.kills FOLDER OVERRIDE...`, which imports
everything once and forks each call of `unlearn train`. Writes FOLDER/kills.json: how many kills hit
each phase of each method.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import unlearn.training.run  # noqa: F401 - so that no call imports it again
from unlearn.cli import main as cli
from unlearn.config.compose import compose
from unlearn.methods.registry import METHODS

PLAN = ("drawing", "training", "training", "training", "evaluation")


def call(folder: Path, overrides: list[str]) -> int:
    """Start `unlearn train` in a process of its own; returns its id."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        os.setsid()
        os.chdir(folder)
        os.environ["UNLEARN_CACHE"] = str(folder / "cache")
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = ["unlearn", "train", *overrides]
        cli.main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def drawn(folder: Path) -> int:
    return sum(1 for _ in (folder / "cache").rglob("*.png"))


def moment(phase: str, folder: Path, run: Path) -> Callable[[], bool]:
    """Whether a random moment of the phase has come: so many images, or so many checkpoints."""
    weights, checkpoint = run / "unlearned.safetensors", run / "checkpoints" / "last.ckpt"
    images, written = drawn(folder), set()
    count = random.randint(1, 12 if phase == "evaluation" else 3)

    def come() -> bool:
        if phase == "training":
            if checkpoint.exists():
                written.add(checkpoint.stat().st_mtime_ns)
            return len(written) > count
        return drawn(folder) >= images + count and (phase == "drawing" or weights.exists())

    return come


def killed(pid: int, come: Callable[[], bool]) -> bool:
    """Kill the process a little after a moment has come; whether it was still there."""
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if come():
            time.sleep(random.random() * 0.05)
            os.kill(pid, signal.SIGKILL)
            return os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        time.sleep(0.001)
    return False


def overrides_of(name: str, shared: list[str]) -> list[str]:
    """The call that trains the method, quickly."""
    takes = compose([f"method={name}"]).method.keys()
    own = [o for o in shared if not o.startswith("method.") or o[7:].split("=")[0] in takes]
    quick = {"num_inference_steps": 2, "mask_batches": 2}
    own += [f"method.{key}={value}" for key, value in quick.items() if key in takes]
    return [f"method={name}", *own, f"run_dir={name}"]


def main() -> None:
    """See above."""
    folder, shared = Path(sys.argv[1]), sys.argv[2:]
    hits: dict[str, dict[str, int]] = {}
    seed = random.randrange(2**32)
    random.seed(seed)
    print(f"kills.py: seed {seed}")
    for name in [m for m in METHODS if not METHODS[m].closed_form]:
        hits[name] = dict.fromkeys(PLAN, 0)
        overrides = overrides_of(name, shared)
        for side in ("undisturbed", "disturbed"):
            own = folder / side / name  # each with a cache of its own
            own.mkdir(parents=True)
            for phase in PLAN if side == "disturbed" else ():
                pid = call(own, overrides)
                hits[name][phase] += killed(pid, moment(phase, own, own / name))
            _, status = os.waitpid(call(own, overrides), 0)
            assert status == 0, f"{side} {name}: {(own / 'log.txt').read_text()[-3000:]}"
    (folder / "kills.json").write_text(json.dumps(hits))


if __name__ == "__main__":
    main()

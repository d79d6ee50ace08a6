"""The console script in a process of its own, at the price of a fork.

Importing torch, Lightning and diffusers takes longer than most commands here do, so one server
imports them once, and each command is a fork of it.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from unlearn.cli import main as cli

SCRIPT = Path(sys.executable).parent / "unlearn"
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["unlearn.training.run", "unlearn.cli.evaluate", "unlearn.sweeps.jobs"]
)


def command(arguments: list[str], cwd: str, environment: dict[str, str], output: str) -> None:
    """In the fork: what the script does, with the streams in files."""
    for number, stream in enumerate(("stdout", "stderr"), start=1):
        with open(f"{output}/{stream}", "wb") as file:
            os.dup2(file.fileno(), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [str(SCRIPT), *arguments]
    try:
        cli.main()
    finally:
        threading._shutdown()  # multiprocessing would leave without these two, and
        atexit._run_exitfuncs()  # joblib's workers live on for five minutes


def unlearn(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`unlearn ARGUMENTS` in a folder, with environment variables beside the present ones."""
    with tempfile.TemporaryDirectory() as output:
        environment = {**os.environ, **variables}
        process = SERVER.Process(
            target=command, args=(list(arguments), str(cwd), environment, output)
        )
        process.start()
        process.join()
        stdout, stderr = ((Path(output) / name).read_text() for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(arguments, process.exitcode or 0, stdout, stderr)

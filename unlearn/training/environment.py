"""Record what made a run: the command, the package's commit, the machine and the date."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only

from unlearn.config.run_config import ModelConfig
from unlearn.utils.atomic import write_text
from unlearn.utils.credentials import hide_secrets

PACKAGES = ("unlearn-diffusion", "torch", "lightning", "diffusers", "transformers")
CPU_FILE = Path("/proc/cpuinfo")  # of Linux, where `platform.processor` is empty
GIT_SECONDS = 10


@rank_zero_only
def write_environment(config: ModelConfig) -> None:
    """Write environment.json; a secret on the command line is replaced by its variable's name."""
    names = {"cuda": torch.cuda.get_device_name, "mps": lambda: "Apple GPU", "cpu": lambda: "CPU"}
    facts = {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "device": names[config.device](),
        "precision": config.precision,
        "command": hide_secrets(command_line()),
        **read_commit(Path(__file__).parents[1]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
    }
    write_text(config.folder / "environment.json", json.dumps(facts, indent=2) + "\n")


def command_line() -> str:
    """Return this process's command line, for a shell, without the program's folder."""
    program, *arguments = sys.argv or [""]
    return shlex.join([Path(program).name, *arguments])


def read_commit(package: Path) -> dict[str, str | bool]:
    """Return the git commit of a package's source, and whether tracked files differ from it.

    Args:
        package: the package's folder.

    Returns:
        The facts `commit` and `uncommitted changes`; none where git does not track the package.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        done = subprocess.run(
            command, capture_output=True, check=True, text=True, timeout=GIT_SECONDS
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # a venv may lie in a user's repository
        changes = git("--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "uncommitted changes": bool(changes)}
    except (OSError, subprocess.SubprocessError):
        return {}


def processor_name() -> str:
    """Return the processor's model name; empty where the system does not tell it."""
    if CPU_FILE.exists():
        for line in CPU_FILE.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()

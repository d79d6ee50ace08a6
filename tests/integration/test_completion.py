"""Shell completion: what a real bash offers for the beginning of a command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from unlearn.cli.completion import run

BIN = Path(sys.executable).parent
ASK = """
eval "$(unlearn train -sc install=bash)"
for line in "$@"; do
    COMP_LINE="$line" COMP_POINT=${#line} COMP_WORDS=($line)
    COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 )) COMPREPLY=()
    hydra_bash_completion
    echo "${COMPREPLY[*]}"
done
eval "$(unlearn train -sc uninstall=bash)"
! complete -p unlearn 2> /dev/null
"""
COMPLETE = """
import json, sys
from unlearn.cli.completion import BashCompletion, complete, config_loader
plugin = BashCompletion(config_loader())
print(json.dumps([complete(plugin, line) for line in sys.argv[1:]]))
assert "torch" not in sys.modules
"""


def test_bash_completes_commands_groups_choices_and_keys(tmp_path: Path) -> None:
    lines = ["unlearn tr", "unlearn train conc", "unlearn train concept=pan"]
    done = subprocess.run(
        ["bash", "--norc", "-c", ASK, "bash", *lines, "unlearn train concept=panda method.l"],
        cwd=tmp_path, env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert [set(line.split()) for line in done.stdout.splitlines()] == [
        {"train"}, {"concept=", "concept."}, {"concept=panda"},
        {"method.lr=", "method.lr_schedule="},
    ]  # fmt: skip


def test_what_completes_a_line(tmp_path: Path) -> None:
    own = tmp_path / "conf" / "concept"
    own.mkdir(parents=True)
    (own / "pangolin.yaml").write_text("defaults: [custom, _self_]\nname: pangolin\n")
    expected = {
        "unlearn train concept=pan": ["concept=panda", "concept=pangolin"],
        "unlearn train 'concept=[panda,noto]' method.surg": ["method.surgery="],
        "unlearn train -m concept=panda,rabbit see": ["seed="],
        "unlearn train hydra/launcher=submitit_slurm method.warm": ["method.warmup_steps="],
        "unlearn train concept=development/ti": ["concept=development/tiger"],
        "unlearn train logger=wandb logger.wandb.m": ["logger.wandb.mode="],
        "unlearn train --cfg job ~ev": ["~evaluation"],
        "unlearn train method.lr=": ["method.lr=0.0001"],  # the default, of the recipe
        "unlearn train method=nothing method.l": [],
        "unlearn train run_dir=": [],
        "unlearn config method.lr_": ["method.lr_schedule"],
        "unlearn evaluate runs/x evaluation=i2p": ["evaluation=i2p", "evaluation=i2p_lite"],
        "unlearn sample runs/": [],  # a path is the shell's to find
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPLETE, *expected], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    offered = json.loads(done.stdout)
    assert dict(zip(expected, offered, strict=True)) == expected


@pytest.mark.parametrize("given", ["install=tcsh", "remove=bash", ""])
def test_an_unknown_shell_or_action_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="unlearn train -sc"):
        run([given] if given else [])

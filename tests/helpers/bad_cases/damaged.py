"""Files of a run, of the user's conf/ and of jobs that are damaged, hostile or another's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tests.helpers.bad_input import Case, files, train
from tests.helpers.checkpoints import checkpoint_state

RATE = {"value": 0.5, "low": 0.2, "high": 0.8, "n": 3}
NONE = {"value": None, "low": None, "high": None, "n": 0}
PAIR = {"base": RATE, "unlearned": NONE}
RATES = {"right": PAIR, "object": PAIR, "style": PAIR, "broken": PAIR}
TARGET, KEPT = {**RATES, "anchor": PAIR}, {**RATES, "retention": PAIR, "same": PAIR}
SETS = {"seen_target": TARGET, "unseen_target": TARGET, "related": KEPT, "unrelated": KEPT}
RESULT = {
    "concept": "panda", "kind": "instance", "method": "doco", "settings": {},
    "excluded_prompts": [], "sets": SETS, "sha256": {},
}  # fmt: skip
FLAGS = [f"{s}_{f}" for s in ("base", "unlearned") for f in ("object", "style", "right", "anchor",
                                                           "broken")]  # fmt: skip
HEAD = ",".join(["set", "prompt", "seed", "counts", *FLAGS, "rmse"])
BOMB = "\n".join(
    ["a: &a [x, x, x, x, x, x, x, x, x]"]
    + [
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ]
)
LOOP = "name: &loop\n  more: *loop\n"
DEEP = "name: " + "[" * 3000 + "]" * 3000


def finished(work: Path, **contents: Any) -> None:
    """A run with a result, and further files of these contents by name without a suffix."""
    run = work / "run"
    Image.new("RGB", (512, 512)).save(run / "before_after.png")
    result = contents.pop("result", RESULT)
    (run / "result.json").write_text(result if isinstance(result, str) else json.dumps(result))
    for name, content in contents.items():
        path = run / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def report(message: str, **contents: Any) -> Case:
    """`unlearn report` of a run with damaged files."""
    return Case(["report", "run"], message, lambda work: finished(work, **contents))


def sets(**rates: Any) -> dict[str, Any]:
    """A result whose unseen target prompts have other rates."""
    return RESULT | {"sets": SETS | {"unseen_target": TARGET | rates}}


def checkpoint(content: Any) -> Callable[[Path], None]:
    """A run that was cut off, whose checkpoint holds something else."""

    def write(work: Path) -> None:
        (work / "run" / "unlearned.safetensors").unlink()
        (work / "run" / "checkpoints").mkdir()
        torch.save(content, work / "run" / "checkpoints" / "last.ckpt")

    return write


def config(text: str) -> Callable[[Path], None]:
    """The run has another config.yaml."""
    return files(run__config_dot_yaml=text)


def changed(old: str, new: str) -> Callable[[Path], None]:
    """The run's config.yaml has one line changed."""

    def write(work: Path) -> None:
        path = work / "run" / "config.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return write


def own(text: str) -> Callable[[Path], None]:
    """A concept of the user's own conf/."""
    return files(conf__concept__own_dot_yaml=text)


SAMPLE = ["sample", "run", "a panda"]
RESUME = [
    "concept=panda",
    "model.pretrained={model}",
    "evaluation.images_per_prompt=1",
    "run_dir=run",
]
STATE = checkpoint_state(3)
CASES = [
    report(r"result\.json: damaged .*Invalid JSON", result="{"),
    report(r"result\.json: damaged ", result="[" * 5000),
    report(r"result\.json: damaged .*should be an object", result=[1]),
    report(
        r"result\.json: damaged .*settings.*: .*should be an object",
        result=RESULT | {"settings": 5},
    ),
    report(r"result\.json: damaged .*sets", result=RESULT | {"sets": None}),
    report(r"result\.json: damaged .*sets", result=RESULT | {"sets": {"seen_target": TARGET}}),
    report(r"result\.json: damaged .*concepts", result=RESULT | {"concepts": [1]}),
    report(r"result\.json: damaged .*right", result=sets(right=5)),
    report(
        r"result\.json: damaged .*3 images and no value",
        result=sets(right={"base": NONE | {"n": 3}, "unlearned": NONE}),
    ),
    report(
        r"result\.json: damaged .*less than or equal to 1",
        result=sets(right={"base": RATE | {"value": 7.0}, "unlearned": RATE}),
    ),
    report(r"result\.json: damaged .*value", result=json.dumps(RESULT).replace("0.5", "NaN")),
    report(r"metrics\.csv: damaged .*step=inf", metrics_dot_csv="step,loss/unlearn\ninf,2\n1,3\n"),
    report(r"metrics\.csv: damaged .*step=-1", metrics_dot_csv="step,a\n-1,2\n"),
    report(r"metrics\.csv: damaged .*'x'", metrics_dot_csv="step,a\n1,x\n"),
    report(r"metrics\.csv: damaged .*KeyError", metrics_dot_csv="a,b\n1,2\n"),
    report(r"environment\.json: damaged", environment_dot_json=[1]),
    report(r"environment\.json: damaged", environment_dot_json={"python": {"a": 1}}),
    report(r"budget\.json: damaged .*measured", budget_dot_json={}),
    report(
        r"budget\.json: damaged .*memory",
        budget_dot_json={"measured": {"memory": -1, "steps": 1}, "count": 3},
    ),
    report(r"evaluation/spm\.json: damaged", evaluation__spm_dot_json="none"),
    report(
        r"evaluation/spm\.json: damaged .*lite: Field required",
        evaluation__spm_dot_json={"protocol": "spm"},
    ),
    report(r"images\.csv: damaged .*line 2 has no ", images_dot_csv="set\nseen_target\n"),
    report(r"images\.csv: damaged .*none of", images_dot_csv=f"{HEAD}\nx,a,1,1{',1' * 10},0.5\n"),
    report(
        r"images\.csv: damaged .*seed='x'", images_dot_csv=f"{HEAD}\nrelated,a,x,1{',1' * 10},0.5\n"
    ),
    report(
        r"images\.csv: damaged .*='7', not 0",
        images_dot_csv=f"{HEAD}\nrelated,a,1,1{',7' * 10},0.5\n",
    ),
    report(
        r"images\.csv: damaged .*rmse='1\.5': 0 to 1 is needed",
        images_dot_csv=f"{HEAD}\nrelated,a,1,1{',1' * 10},1.5\n",
    ),
    report(
        r"images\.csv: damaged .*rmse='nan': 0 to 1 is needed",
        images_dot_csv=f"{HEAD}\nrelated,a,1,1{',1' * 10},nan\n",
    ),
    report(
        r"images\.csv: changed since the evaluation wrote it",
        images_dot_csv=f"{HEAD}\n",
        result=RESULT | {"sha256": {"images.csv": "0" * 64}},
    ),
    Case(
        SAMPLE, r"config\.yaml: damaged .*concept\.name is missing", changed("  name: panda\n", "")
    ),
    Case(SAMPLE, r"config\.yaml: damaged ", changed("log_group:", "earlier: x\nlog_group:")),
    Case(
        SAMPLE,
        r"config\.yaml: damaged .*guidance_scale",
        changed("guidance_scale: ", "guidance_scale: x"),
    ),
    Case(
        SAMPLE,
        r"config\.yaml: not a run's: .*not resolved",
        changed("seed: 0", "seed: ${oc.env:HOME}"),
    ),
    Case(SAMPLE, r"config\.yaml: not a run's: .*stands for more than 100000 values", config(BOMB)),
    Case(SAMPLE, r"config\.yaml: not a run's: .*holds itself", config(LOOP)),
    Case(SAMPLE, r"config\.yaml: not a run's: .*nested more than 50 deep", config(DEEP)),
    Case(
        SAMPLE, r"config\.yaml: not a run's: it has no method\.name", changed("  name: doco\n", "")
    ),
    train("concept=own", r"own\.yaml: stands for more than 100000 values", own(BOMB)),
    train("concept=own", r"own\.yaml: holds itself, by the alias", own(LOOP)),
    train("concept=own", r"own\.yaml: nested more than 50 deep", own(DEEP)),
    Case(
        ["train", "-m", "hydra.sweeper.jobs=jobs.yaml"],
        r"jobs\.yaml.*more than 100000 values",
        files(jobs_dot_yaml=BOMB),
    ),
    Case(
        ["train", *RESUME],
        r"last\.ckpt: damaged, or not a checkpoint of a run \(it holds a list\)",
        checkpoint([1]),
    ),
    Case(["train", *RESUME], r"last\.ckpt: damaged, .*step=-4", checkpoint(STATE | {"step": -4})),
    Case(
        ["train", *RESUME],
        r"last\.ckpt: damaged, .*state_dict is not there, or no dict",
        checkpoint(STATE | {"state_dict": 5}),
    ),
    Case(
        ["train", *RESUME],
        r"last\.ckpt: damaged, .*step is not there, or no int",
        checkpoint({"a": torch.zeros(2)}),
    ),
    Case(
        [
            "evaluate",
            "run",
            "evaluation=coco30k",
            "evaluation.sha256=null",
            "evaluation.clip=emoji",
            "evaluation.prompts_file=own.csv",
        ],
        r"own\.csv: .*field larger than field limit.*stray quote",
        files(own_dot_csv='case_number,prompt\n0,"a panda\n' + "1,a fox on a mat\n" * 20000),
    ),
]

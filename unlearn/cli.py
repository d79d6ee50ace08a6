"""The console script: `unlearn COMMAND [overrides]`."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any, NoReturn

from unlearn.credentials import hide
from unlearn.names import hint
from unlearn.usage import HELP, USAGE

NEW_CONCEPT = """# A concept of one's own: unlearn train concept={name}
defaults:
  - custom
  - _self_
  - override /anchor@_global_.anchor: custom   # or a file of conf/anchor; else anchor.name=...

name: "{name}"
kind: instance          # instance | style | unsafe (explicit content; may be a group of objects)

# What is null here has a default that the embedded model's vocabulary gives; for Stable Diffusion
# name at least some related concepts.
targets: null           # words to forget; null: the name
synonyms: null          # phrases that unlearning never sees: {{{name}: [a phrase, another]}}
seen_templates: null    # to train on: ["a photo of a {{}}"]; a style: ["{{p}} in {{t}}'s style"]
unseen_templates: null  # only for evaluation
related: null           # neighbours that must survive
unrelated: null         # far concepts that must survive, in no training prompt
"""


def refuse(error: Exception) -> NoReturn:
    """A user's error: one line on stderr, which holds no secret, and exit status 2."""
    print(f"unlearn: {hide(str(error))}", file=sys.stderr)
    raise SystemExit(2) from error


def conf_dir() -> Path:
    """The folder of the configs: beside the package in a checkout, inside it in a wheel."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.exists() else Path(__file__).parents[1] / "conf"


def own_conf() -> Path | None:
    """The folder of the user's own configs, found beside the shipped ones; None: there is none."""
    own = Path("conf").resolve()
    return own if own.is_dir() and own != conf_dir() else None


def files_of(group: str) -> list[str]:
    """The names that a group of conf/ takes, one's own among them."""
    folders = [folder / group for folder in (conf_dir(), own_conf()) if folder]
    return sorted(
        {
            p.relative_to(folder).with_suffix("").as_posix()
            for folder in folders
            for p in folder.rglob("*.yaml")
        }
    )


def train_one(command_line: list[str], config: Any) -> None:
    """What Hydra composed, run; `command_line` is that of the first process."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from unlearn.faults import RunError
    from unlearn.sweep import attempt, config_of
    from unlearn.train import train

    sys.argv = command_line  # Lightning starts the other ranks of DDP with it
    given = list(HydraConfig.get().overrides.task)
    try:
        config = config_of(config, given)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            attempt(config, given)
        else:
            train(config)
    except (ValueError, RunError) as error:
        refuse(error)


def run_train(overrides: list[str]) -> None:
    """`unlearn train`, composed and launched by Hydra (so `-m` sweeps)."""
    import hydra

    from unlearn.overrides import check_flags, said_plainly
    from unlearn.several import listed  # and the resolver that `run_dir` needs

    check_flags(overrides)
    if "--cfg" in overrides and listed([o for o in overrides if "=" in o])[0]:
        raise ValueError("--cfg: shows one concept's configuration; a run's is its config.yaml")
    job = update_wrapper(partial(train_one, list(sys.argv)), train_one)
    if own := own_conf():
        overrides = ["--config-dir", str(own), *overrides]
    sys.argv = [sys.argv[0], *overrides]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print its own errors, and exit with 1
    with said_plainly(overrides):
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(job)()


def load_run(run: str) -> tuple[Any, Path]:
    """The config of a finished run.

    Raises:
        ValueError: `run` holds no config.yaml of a run, or no unlearned.safetensors of its base.
    """
    from unlearn.config import base_name
    from unlearn.export import check_base
    from unlearn.sections import read_config

    folder = Path(run)
    for name in ("config.yaml", "unlearned.safetensors"):
        if not (folder / name).exists():
            raise ValueError(f"{folder}: not a finished run directory, {name} is missing")
    config = read_config(folder / "config.yaml")
    check_base(folder / "unlearned.safetensors", base_name(config))
    return config, folder


def run_evaluate(arguments: list[str]) -> None:
    """`unlearn evaluate RUN_DIR... [overrides]`."""
    from unlearn.evaluation.command import evaluate_all
    from unlearn.faults import RunError

    try:
        evaluate_all(arguments)
    except RunError as error:
        refuse(error)


def run_sample(arguments: list[str]) -> None:
    """`unlearn sample RUN_DIR PROMPT...`: one row a prompt, base beside unlearned."""
    if len(arguments) < 2:
        raise ValueError('usage: unlearn sample RUN_DIR "PROMPT" ["PROMPT" ...]')
    config, folder = load_run(arguments[0])
    import torch
    from PIL import Image

    from unlearn.backbone import device_of, load_pipeline
    from unlearn.config import base_of, sampler_of
    from unlearn.data import check_known, check_lengths
    from unlearn.export import check_unlearned, load_unlearned
    from unlearn.files import whole
    from unlearn.generate import generate

    prompts, numbers = arguments[1:], range(len(arguments) - 1)
    sampler = sampler_of(config, config.evaluation.sampling_steps)
    pipe = load_pipeline(**base_of(config)).to(device_of(config.trainer.accelerator))
    check_known(pipe.tokenizer, prompts)
    check_lengths(pipe.tokenizer, prompts)
    check_unlearned(pipe, folder / "unlearned.safetensors")
    sides = [generate(pipe, prompts, numbers, description="base images", **sampler)]
    load_unlearned(pipe, folder / "unlearned.safetensors")
    sides.append(generate(pipe, prompts, numbers, description="unlearned images", **sampler))
    picture = torch.cat(sides, dim=-1).permute(0, 2, 3, 1).flatten(0, 1)
    with whole(folder / "sample.png") as partial:
        Image.fromarray(picture.numpy()).save(partial, format="PNG")
    print(folder / "sample.png")


def run_export(arguments: list[str]) -> None:
    """`unlearn export RUN_DIR [OUT] [overrides]`."""
    from unlearn.evaluation.command import split

    paths, overrides = split(arguments)
    if len(paths) not in (1, 2):
        raise ValueError("usage: unlearn export RUN_DIR [OUT] [format=FORMAT] [error=SHARE]")
    config, folder = load_run(paths[0])
    from omegaconf import OmegaConf

    from unlearn.formats import ExportOptions, export
    from unlearn.sections import section

    options = section(OmegaConf.from_dotlist(overrides), "", ExportOptions)
    print(export(config, folder, Path(paths[1]) if paths[1:] else None, options))


def run_merge(arguments: list[str]) -> None:
    """`unlearn merge RUN_DIR RUN_DIR... OUT_DIR [overrides]`."""
    from omegaconf import OmegaConf

    from unlearn.evaluation.command import split
    from unlearn.merge import MergeOptions, merge_runs
    from unlearn.sections import section

    paths, overrides = split(arguments)
    if len(paths) < 3:
        raise ValueError("usage: unlearn merge RUN_DIR RUN_DIR... OUT_DIR [scale=1.0]")
    options = section(OmegaConf.from_dotlist(overrides), "", MergeOptions)
    print(merge_runs([Path(p) for p in paths[:-1]], Path(paths[-1]), options))


def run_report(arguments: list[str]) -> None:
    """`unlearn report RUN_DIR... [out=report.html]`."""
    from unlearn.report import report_runs

    print(report_runs(arguments))


def run_demo(arguments: list[str]) -> None:
    """`unlearn demo RUN_DIR [port=7860] [host=127.0.0.1]`."""
    from unlearn.demo import serve

    serve(arguments)


def run_sweep_report(arguments: list[str]) -> None:
    """`unlearn sweep-report DIR...`."""
    if not arguments:
        raise ValueError("usage: unlearn sweep-report DIR [DIR ...]")
    from unlearn.sweep_report import report

    report([Path(folder) for folder in arguments])


def run_new_concept(arguments: list[str]) -> None:
    """`unlearn new-concept NAME`."""
    if len(arguments) != 1 or not re.fullmatch(r"[^\W_]\w*", arguments[0]):
        raise ValueError("usage: unlearn new-concept NAME (letters, digits and _)")
    if (conf_dir() / "concept" / f"{arguments[0]}.yaml").exists():
        raise ValueError(f"{arguments[0]}: a shipped concept has this name; choose another")
    path = Path("conf") / "concept" / f"{arguments[0]}.yaml"
    if path.exists():
        raise ValueError(f"{path}: exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(NEW_CONCEPT.format(name=arguments[0]), encoding="utf-8")
    print(path)


def choices(command: str) -> str:
    """The choices of the groups of conf/ that the command takes, one line a group."""
    groups = sorted(p.name for p in conf_dir().iterdir() if p.is_dir())
    groups = [group for group in groups if group not in ("evaluation", "hydra")]
    if command == "evaluate":
        groups = ["evaluation", "concept", "model"]
    lines = []
    for group in groups:
        names, prefix = ", ".join(files_of(group)), f"  {group:<11} "
        lines.append(textwrap.fill(names, 98, initial_indent=prefix, subsequent_indent=" " * 14))
    return "\n".join(lines)


def main() -> None:
    """Dispatch; a user's error is one line on stderr and exit status 2."""
    commands = {
        "train": run_train,
        "evaluate": run_evaluate,
        "sample": run_sample,
        "export": run_export,
        "merge": run_merge,
        "report": run_report,
        "demo": run_demo,
        "sweep-report": run_sweep_report,
        "new-concept": run_new_concept,
    }
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # advice on packages not used here
    command, *rest = arguments
    if command not in commands:
        refuse(ValueError(f"{command!r} is not a command; {hint(command, list(commands))}"))
    if {"-h", "--help"} & {*rest}:
        print(HELP[command].replace("{choices}", choices(command)))
        return
    try:
        commands[command](rest)
    except (ValueError, OSError) as error:
        refuse(error)


if __name__ == "__main__":
    main()

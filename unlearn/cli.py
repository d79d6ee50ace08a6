"""The console script: `unlearn COMMAND [overrides]`."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path
from typing import Any, NoReturn

USAGE = """usage: unlearn COMMAND ...

  train        forget a concept, evaluate, and write a run directory
  evaluate     evaluate finished runs again, or by a published protocol
  sample       draw prompts with a run's weights, base beside unlearned
  export       write a run as a whole diffusers folder with a model card
  new-concept  write a commented file for a concept of your own

`unlearn COMMAND --help` says more.
"""
HELP = {
    "train": """usage: unlearn train [-m] concept=NAME [key=value ...]

  unlearn train concept=panda                       on the embedded model
  unlearn train concept=van_gogh model=sd14         on Stable Diffusion 1.4
  unlearn train concept.name=fox concept.kind=instance anchor.name=dog
  unlearn train -m concept=panda,rabbit seed=0,1    every combination, one run each
  unlearn train 'concept=[panda,noto]'              several, together
  unlearn train concept=noto after=runs/panda-doco-0   one after another
  unlearn train concept=panda trainer=ddp           all GPUs
  unlearn train concept=panda --cfg job --resolve   print the configuration, run nothing

choices (files of conf/; your own in ./conf/ are found too):
{choices}

Any key of the configuration can be given: steps=500 method.lr=1e-4 data.images=64
""",
    "evaluate": """usage: unlearn evaluate RUN_DIR... [evaluation=NAME] [key=value ...]

  unlearn evaluate runs/panda-doco-0                       its four prompt sets again
  unlearn evaluate runs/panda-doco-0 evaluation.seeds=4    with more images
  unlearn evaluate runs/snoopy-* evaluation=spm_general    a published protocol
  unlearn evaluate PATH concept=snoopy model=sd14 evaluation=spm_general
                     weights from elsewhere: a diffusers folder, a .safetensors, .bin or .pt file

The four prompt sets write result.json, images.csv and before_after.png into RUN_DIR; a protocol
writes RUN_DIR/evaluation/NAME.json. Of weights from elsewhere, out_dir=FOLDER takes the place of
RUN_DIR (default: runs/evaluate-STEM).

choices (files of conf/; your own in ./conf/ are found too):
{choices}

A protocol's prompts are fetched on first use and checked against their published hash. Its file of
conf/evaluation holds every key, such as:

  evaluation.limit=5               prompts a concept, to try it (NAME_lite: a small variant)
  evaluation.prompts_file=PATH     the prompts where there is no network: a file, or a folder
  evaluation.sha256=null           takes prompts of one's own from there
  evaluation.clip=PATH             another CLIP; emoji: the embedded model's
  evaluation.inception=PATH        torch-fidelity's Inception weights, for FID and KID
  '~evaluation.concepts.Dog'       leaves a concept out
""",
    "sample": """usage: unlearn sample RUN_DIR "PROMPT" ["PROMPT" ...]

Writes RUN_DIR/sample.png: one row a prompt, the base model beside the unlearned one.
""",
    "export": """usage: unlearn export RUN_DIR [OUT_DIR]

Writes OUT_DIR (RUN_DIR/export): a diffusers folder, the delta, and a model card.
""",
    "new-concept": """usage: unlearn new-concept NAME

Writes conf/concept/NAME.yaml under this folder, to edit; then: unlearn train concept=NAME
""",
}


NEW_CONCEPT = """# A concept of one's own: unlearn train concept={name}
defaults:
  - custom
  - _self_
  - override /anchor@_global_.anchor: custom   # or a file of conf/anchor; else anchor.name=...

name: {name}
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
    """A user's error: one line on stderr and exit status 2."""
    print(f"unlearn: {error}", file=sys.stderr)
    raise SystemExit(2) from error


def conf_dir() -> Path:
    """The folder of the configs: beside the package in a checkout, inside it in a wheel."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.exists() else Path(__file__).parents[1] / "conf"


def own_conf() -> Path | None:
    """The folder of the user's own configs, found beside the shipped ones; None: there is none."""
    own = Path("conf").resolve()
    return own if own.is_dir() and own != conf_dir() else None


def run_train(overrides: list[str]) -> None:
    """`unlearn train`, composed and launched by Hydra (so `-m` sweeps)."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    from unlearn.several import listed  # and the resolver that `run_dir` needs

    if "--cfg" in overrides and listed([o for o in overrides if "=" in o])[0]:
        raise ValueError("--cfg: shows one concept's configuration; a run's is its config.yaml")
    command_line = list(sys.argv)

    def job(config: object) -> None:
        from unlearn.config import compose
        from unlearn.train import LostRankError, train

        sys.argv = command_line  # Lightning starts the other ranks of DDP with it
        given = list(HydraConfig.get().overrides.task)
        try:
            if listed(given)[0]:  # Hydra merged the files of concept=[a,b] key by key
                GlobalHydra.instance().clear()
                config = compose(given)
            train(config)  # type: ignore[arg-type]
        except (ValueError, LostRankError) as error:
            refuse(error)

    if own := own_conf():
        overrides = ["--config-dir", str(own), *overrides]
    sys.argv = [command_line[0], *overrides]
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(job)()


def load_run(run: str) -> tuple[Any, Path]:
    """The config of a finished run.

    Raises:
        ValueError: `run` holds no config.yaml and unlearned.safetensors.
    """
    from omegaconf import OmegaConf

    folder = Path(run)
    for name in ("config.yaml", "unlearned.safetensors"):
        if not (folder / name).exists():
            raise ValueError(f"{folder}: not a finished run directory, {name} is missing")
    return OmegaConf.load(folder / "config.yaml"), folder


def run_evaluate(arguments: list[str]) -> None:
    """`unlearn evaluate RUN_DIR... [overrides]`."""
    from unlearn.evaluation.command import evaluate_all

    evaluate_all(arguments)


def run_sample(arguments: list[str]) -> None:
    """`unlearn sample RUN_DIR PROMPT...`: one row a prompt, base beside unlearned."""
    if len(arguments) < 2:
        raise ValueError('usage: unlearn sample RUN_DIR "PROMPT" ["PROMPT" ...]')
    config, folder = load_run(arguments[0])
    import torch
    from PIL import Image

    from unlearn.backbone import device_of, load_pipeline
    from unlearn.config import base_of, sampler_of
    from unlearn.export import load_unlearned
    from unlearn.generate import generate

    prompts, numbers = arguments[1:], range(len(arguments) - 1)
    sampler = sampler_of(config, config.evaluation.sampling_steps)
    pipe = load_pipeline(**base_of(config)).to(device_of(config.trainer.accelerator))
    sides = [generate(pipe, prompts, numbers, description="base images", **sampler)]
    load_unlearned(pipe, folder / "unlearned.safetensors")
    sides.append(generate(pipe, prompts, numbers, description="unlearned images", **sampler))
    picture = torch.cat(sides, dim=-1).permute(0, 2, 3, 1).flatten(0, 1)
    Image.fromarray(picture.numpy()).save(folder / "sample.png")
    print(folder / "sample.png")


def run_export(arguments: list[str]) -> None:
    """`unlearn export RUN_DIR [OUT_DIR]`."""
    if len(arguments) not in (1, 2):
        raise ValueError("usage: unlearn export RUN_DIR [OUT_DIR]")
    config, folder = load_run(arguments[0])
    from unlearn.export import export_run

    out = Path(arguments[1]) if len(arguments) == 2 else folder / "export"
    print(export_run(config, folder, out))


def run_new_concept(arguments: list[str]) -> None:
    """`unlearn new-concept NAME`."""
    if len(arguments) != 1 or not arguments[0].replace("_", "").isalnum():
        raise ValueError("usage: unlearn new-concept NAME (letters, digits and _)")
    path = Path("conf") / "concept" / f"{arguments[0]}.yaml"
    if path.exists():
        raise ValueError(f"{path}: exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(NEW_CONCEPT.format(name=arguments[0]), encoding="utf-8")
    print(path)


def choices(command: str) -> str:
    """The choices of the groups of conf/ that the command takes, one line a group."""
    folder = conf_dir()
    groups = [p for p in sorted(folder.iterdir()) if p.is_dir() and p.name != "evaluation"]
    if command == "evaluate":
        groups = [folder / name for name in ("evaluation", "concept", "model")]
    lines = []
    for group in groups:
        files = sorted(group.rglob("*.yaml"))
        names = ", ".join(p.relative_to(group).with_suffix("").as_posix() for p in files)
        prefix = f"  {group.name:<11} "
        lines.append(textwrap.fill(names, 98, initial_indent=prefix, subsequent_indent=" " * 14))
    return "\n".join(lines)


def main() -> None:
    """Dispatch; a user's error is one line on stderr and exit status 2."""
    commands = {
        "train": run_train,
        "evaluate": run_evaluate,
        "sample": run_sample,
        "export": run_export,
        "new-concept": run_new_concept,
    }
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # advice on packages not used here
    command, *rest = arguments
    if command not in commands:
        print(f"unlearn: {command!r} is not a command\n\n{USAGE}", file=sys.stderr)
        raise SystemExit(2)
    if {"-h", "--help"} & {*rest}:
        print(HELP[command].replace("{choices}", choices(command)))
        return
    try:
        commands[command](rest)
    except ValueError as error:
        refuse(error)


if __name__ == "__main__":
    main()

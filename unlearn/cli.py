"""The console script: `unlearn COMMAND [overrides]`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NoReturn

USAGE = """usage: unlearn COMMAND [key=value ...]

commands:
  train     forget a concept, evaluate, and write a run directory
            unlearn train concept=panda model=emoji
  evaluate  evaluate a finished run again
            unlearn evaluate RUN_DIR
  sample    draw prompts with a run's weights, base beside unlearned
            unlearn sample RUN_DIR "a panda" "a picture of a fox"
"""


def refuse(error: ValueError) -> NoReturn:
    """A user's error: one line on stderr and exit status 2."""
    print(f"unlearn: {error}", file=sys.stderr)
    raise SystemExit(2) from error


def run_train(overrides: list[str]) -> None:
    """`unlearn train`, composed and launched by Hydra (so `-m` sweeps)."""
    import hydra

    from unlearn.config import conf_dir

    def job(config: object) -> None:
        from unlearn.train import train

        try:
            train(config)  # type: ignore[arg-type]
        except ValueError as error:
            refuse(error)

    sys.argv = ["unlearn train", *overrides]
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
    """`unlearn evaluate RUN_DIR`."""
    if len(arguments) != 1:
        raise ValueError("usage: unlearn evaluate RUN_DIR")
    config, folder = load_run(arguments[0])
    from unlearn.evaluation.evaluate import evaluate

    evaluate(config, folder)


def run_sample(arguments: list[str]) -> None:
    """`unlearn sample RUN_DIR PROMPT...`: one row a prompt, base beside unlearned."""
    if len(arguments) < 2:
        raise ValueError('usage: unlearn sample RUN_DIR "PROMPT" ["PROMPT" ...]')
    config, folder = load_run(arguments[0])
    import torch
    from PIL import Image

    from unlearn.backbone import device_of, load_pipeline
    from unlearn.export import load_unlearned
    from unlearn.generate import generate

    prompts, numbers = arguments[1:], range(len(arguments) - 1)
    sampler = {"steps": config.evaluation.sampling_steps, "guidance": config.model.guidance}
    pipe = load_pipeline(config.model.pretrained).to(device_of(config.trainer.accelerator))
    sides = [generate(pipe, prompts, numbers, description="base images", **sampler)]
    load_unlearned(pipe, folder / "unlearned.safetensors")
    sides.append(generate(pipe, prompts, numbers, description="unlearned images", **sampler))
    picture = torch.cat(sides, dim=-1).permute(0, 2, 3, 1).flatten(0, 1)
    Image.fromarray(picture.numpy()).save(folder / "sample.png")
    print(folder / "sample.png")


def main() -> None:
    """Dispatch; a user's error is one line on stderr and exit status 2."""
    commands = {"train": run_train, "evaluate": run_evaluate, "sample": run_sample}
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return
    if arguments[0] not in commands:
        print(f"unlearn: {arguments[0]!r} is not a command\n\n{USAGE}", file=sys.stderr)
        raise SystemExit(2)
    try:
        commands[arguments[0]](arguments[1:])
    except ValueError as error:
        refuse(error)


if __name__ == "__main__":
    main()

"""Run `unlearn sample`."""

from __future__ import annotations

import torch
from PIL import Image

from unlearn.config.base_model import base_model_options, sampler_options
from unlearn.config.saved import load_run
from unlearn.generation.sampling import generate
from unlearn.models.pipeline import device_for, load_pipeline
from unlearn.models.text_states import check_known, check_lengths
from unlearn.utils.atomic import atomic_path
from unlearn.weights.delta import check_unlearned, load_unlearned

USAGE = 'usage: unlearn sample RUN_DIR "PROMPT" ["PROMPT" ...]'


def run(arguments: list[str]) -> None:
    """Draw a picture with a row a prompt: the base model's image beside the unlearned one's.

    Raises:
        ValueError: there is no such run, or the model cannot read a prompt.
    """
    if len(arguments) < 2:
        raise ValueError(USAGE)
    config, folder = load_run(arguments[0])
    prompts, numbers = arguments[1:], range(len(arguments) - 1)
    sampler = sampler_options(config, config.evaluation.num_inference_steps)
    pipe = load_pipeline(**base_model_options(config)).to(device_for(config.trainer.accelerator))
    check_known(pipe.tokenizer, prompts)
    check_lengths(pipe.tokenizer, prompts)
    check_unlearned(pipe, folder / "unlearned.safetensors")
    sides = [generate(pipe, prompts, numbers, description="base images", **sampler)]
    load_unlearned(pipe, folder / "unlearned.safetensors")
    sides.append(generate(pipe, prompts, numbers, description="unlearned images", **sampler))
    picture = torch.cat(sides, dim=-1).permute(0, 2, 3, 1).flatten(0, 1)
    with atomic_path(folder / "sample.png") as partial:
        Image.fromarray(picture.numpy()).save(partial, format="PNG")
    print(folder / "sample.png")

"""Draw a user's prompts with a run's weights, the base model's images beside the unlearned ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from unlearn.config.run_config import ModelConfig
from unlearn.evaluation.pictures import labelled_rows
from unlearn.generation.sampling import generate
from unlearn.models.text_states import check_prompt_lengths, check_words_known
from unlearn.utils.atomic import atomic_path
from unlearn.weights.delta import load_unlearned, read_fitting_weights


def draw_samples(config: ModelConfig, prompts: Sequence[str]) -> tuple[Path, Image.Image]:
    """Draw a row a prompt into sample.png: the base model's image beside the unlearned model's.

    The noise of row i has seed i on both sides.

    Args:
        config: the configuration of a finished run.
        prompts: what to draw.

    Returns:
        The file, and the picture in it.

    Raises:
        ValueError: the model cannot read a prompt, or the weights do not fit the model; raised
            before any image is drawn.
    """
    prompts, numbers = list(prompts), range(len(prompts))
    sampler = config.sampler(config.prompt_sets.num_inference_steps)
    pipe = config.base.load().to(config.device)
    check_words_known(pipe.tokenizer, prompts)
    check_prompt_lengths(pipe.tokenizer, prompts)
    read_fitting_weights(pipe, config.weights)
    sides = [generate(pipe, prompts, numbers, sampler, description="base images")]
    load_unlearned(pipe, config.weights)
    sides.append(generate(pipe, prompts, numbers, sampler, description="unlearned images"))
    picture = labelled_rows(prompts, *sides)
    with atomic_path(config.folder / "sample.png") as partial:
        picture.save(partial, format="PNG")
    return config.folder / "sample.png", picture

"""Turn a prompt into one tensor, from which any network's call takes what it needs.

The text of a prompt is its token states (T, D). Where the network takes a pooled state too, as
SDXL's and SD3's do, the text has one row more (T + 1, D). That row is the pooled state, filled up
with zeros. Texts of every model are therefore stored, batched and moved alike.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer

PIXELS_PER_LATENT = 8  # of SDXL's images along a latent's side


def pack_text(states: Tensor, pooled: Tensor | None = None) -> Tensor:
    """Return texts (B, T, D), or (B, T + 1, D) with pooled states (B, P) in the last row."""
    if pooled is None:
        return states
    row = F.pad(pooled, (0, states.shape[-1] - pooled.shape[-1]))
    return torch.cat([states, row[:, None]], dim=1)


def unpack_text(network: nn.Module, texts: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the token states (B, T, D) and the pooled states (B, P) of texts.

    The pooled states are None where the network takes none.
    """
    config: Any = network.config
    if "pooled_projection_dim" in config:
        width = config.pooled_projection_dim
    elif config.addition_embed_type is None:
        return texts, None
    else:
        # the embeddings of SDXL's six sizes stand beside the pooled state
        width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return texts[:, :-1], texts[:, -1, :width]


def network_arguments(
    network: nn.Module, z_t: Tensor, times: Tensor, texts: Tensor
) -> dict[str, Any]:
    """Return the arguments that a network is called with beside z_t (B, C, h, w).

    SDXL's networks are also given an image's size before and after cropping, and the corner where
    the crop begins. Here images are always whole and of the latents' own size.

    Source: Podell et al. 2023 (SDXL, arXiv 2307.01952), section 2.2.
    """
    config: Any = network.config
    states, pooled = unpack_text(network, texts)
    given = {"timestep": times, "encoder_hidden_states": states}
    if pooled is None:
        return given
    if "pooled_projection_dim" in config:
        return {**given, "pooled_projections": pooled}
    height, width = (PIXELS_PER_LATENT * side for side in z_t.shape[-2:])
    sizes = torch.tensor([height, width, 0, 0, height, width], device=z_t.device, dtype=z_t.dtype)
    added = {"text_embeds": pooled, "time_ids": sizes.expand(len(z_t), -1)}
    return {**given, "added_cond_kwargs": added}


def predict_output(network: nn.Module, z_t: Tensor, times: Tensor, texts: Tensor) -> Tensor:
    """Return the network's output (B, C, h, w) for noisy latents, their times and their texts."""
    return network(z_t, **network_arguments(network, z_t, times, texts)).sample


def encode_text(pipe: Any, prompts: list[str]) -> Tensor:
    """Encode prompts as texts (P, T, D) or (P, T + 1, D), cut at the token limit.

    The encoding is that of the pipeline's class, since a method may have changed the pipeline's
    own.
    """
    encode_prompt = type(pipe).encode_prompt
    others = {"prompt_2", "prompt_3"} & inspect.signature(encode_prompt).parameters.keys()
    given = encode_prompt(
        pipe, prompts, **dict.fromkeys(others), device=pipe.device, num_images_per_prompt=1,
        do_classifier_free_guidance=False,
    )  # fmt: skip
    return pack_text(*given[::2])  # every other one is of the negative prompt


def unconditional_text(pipe: Any) -> Tensor:
    """Return the text (1, T, D) or (1, T + 1, D) that the pipeline guides away from by default."""
    empty = encode_text(pipe, [""])
    return torch.zeros_like(empty) if pipe.config.get("force_zeros_for_empty_prompt") else empty


def intercept_prompts(pipe: Any, change: Callable[[dict[str, Any]], None]) -> None:
    """Let `change` see, and change in place, the arguments of the pipeline's `encode_prompt`.

    `change` gets all arguments by name, however the pipeline passes them on.
    """
    encode_prompt = pipe.encode_prompt
    signature = inspect.signature(encode_prompt)

    @functools.wraps(encode_prompt)
    def changed(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        change(bound.arguments)
        return encode_prompt(*bound.args, **bound.kwargs)

    pipe.encode_prompt = changed


def check_words_known(tokenizer: CLIPTokenizer, prompts: Iterable[str]) -> None:
    """Refuse prompts with words that the model cannot read.

    Raises:
        ValueError: the tokenizer knows none of a word's pieces, or takes a word for one of its
            special tokens.
    """
    marks = {*tokenizer.all_special_ids}
    for prompt in prompts:
        if marks & {*tokenizer(prompt, verbose=False).input_ids[1:-1]}:
            words = [w for w in prompt.split() if marks & {*tokenizer(w).input_ids[1:-1]}]
            raise ValueError(f"prompt {prompt!r}: the tokenizer does not know {words}")


def check_prompt_lengths(tokenizer: CLIPTokenizer, prompts: Iterable[str]) -> None:
    """Refuse prompts over the token limit.

    Raises:
        ValueError: a prompt is too long; the message says which of its words would be cut.
    """
    limit = tokenizer.model_max_length
    for prompt in prompts:
        ids = tokenizer(prompt, verbose=False).input_ids
        if len(ids) > limit:
            cut = tokenizer.decode(ids[limit - 1 : -1])
            raise ValueError(
                f"prompt {prompt!r} has {len(ids)} tokens; the limit is {limit}, so {cut!r} "
                "would be cut"
            )


@torch.no_grad()
def encode_prompts(pipe: DiffusionPipeline, prompts: list[str], cut: bool = False) -> Tensor:
    """Encode prompts as texts (P, T, D) or (P, T + 1, D).

    Prompts over the token limit are refused, or cut where `cut` is true.

    Raises:
        ValueError: a prompt is longer than the tokenizer's limit, and `cut` is false.
    """
    if not cut:
        check_prompt_lengths(pipe.tokenizer, prompts)
        return encode_text(pipe, prompts)
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))  # no line for each batch with a prompt cut
    try:
        return encode_text(pipe, prompts)
    finally:
        logging.disable(disabled)

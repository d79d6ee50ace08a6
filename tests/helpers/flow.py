"""Small Stable Diffusion 3 pipelines."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

from unlearn.models.pipeline import load_pipeline

SD3 = "stabilityai/stable-diffusion-3-medium-diffusers"
PROMPTS = ["a panda", "a bear"]
WITHOUT_T5 = {"text_encoder_3": None, "tokenizer_3": None}
PIECES = ["<pad>", "</s>", "<unk>", "▁a", "▁panda", "▁bear", "▁", *"abdenpr"]


def small(t5: bool = False, **changes: Any) -> Any:
    """Narrow, with two transformer blocks and always the same weights."""
    pipe: Any = load_pipeline(SD3, random_weights=True, width=0.05, image_size=64)
    torch.manual_seed(0)
    config = {**pipe.transformer.config, "num_layers": 2, "pos_embed_max_size": 16, **changes}
    pipe.transformer = type(pipe.transformer).from_config(config).eval().requires_grad_(False)
    if t5:
        width = config["joint_attention_dim"]
        shape = {"d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
        encoder = T5EncoderModel(T5Config(vocab_size=len(PIECES), d_model=width, **shape))
        vocabulary = [(piece, -float(i)) for i, piece in enumerate(PIECES)]
        tokenizer = T5TokenizerFast(vocab=vocabulary, extra_ids=0)
        pipe.register_modules(
            text_encoder_3=encoder.eval().requires_grad_(False), tokenizer_3=tokenizer
        )
    return pipe


def draw_one(pipe: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    return pipe("a panda", num_inference_steps=2, generator=noise, output_type="pt").images

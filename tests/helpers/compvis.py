"""Models as one file, under CompVis' names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
ENDS = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
}  # fmt: skip
ATTENTION = {
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
}  # fmt: skip


def unet_name(name: str, layers: int) -> str:
    """CompVis' name of a UNet's weight, of one layer a down block and attention inside."""
    for ours, theirs in ENDS.items():
        if name.startswith(f"{ours}."):
            return f"model.diffusion_model.{theirs}{name.removeprefix(ours)}"
    name = re.sub(r"(resnets\.\d)\.(\w+)", lambda m: f"{m[1]}.{RESNET[m[2]]}", name)
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)", name):
        place = 1 if match[1] == "attentions" else 2 * int(match[2])
        name = f"middle_block.{place}{name[match.end() :]}"
    elif match := re.match(r"down_blocks\.(\d)\.(resnets|attentions)\.(\d)", name):
        place = 1 + int(match[1]) * (layers + 1) + int(match[3])
        name = f"input_blocks.{place}.{int(match[2] == 'attentions')}{name[match.end() :]}"
    elif match := re.match(r"down_blocks\.(\d)\.downsamplers\.0\.conv", name):
        name = f"input_blocks.{(int(match[1]) + 1) * (layers + 1)}.0.op{name[match.end() :]}"
    elif match := re.match(r"up_blocks\.(\d)\.(resnets|attentions)\.(\d)", name):
        place = int(match[1]) * (layers + 1) + int(match[3])
        name = f"output_blocks.{place}.{int(match[2] == 'attentions')}{name[match.end() :]}"
    elif match := re.match(r"up_blocks\.0\.upsamplers\.0", name):
        name = f"output_blocks.{layers}.2{name[match.end() :]}"
    return f"model.diffusion_model.{name}"


def vae_name(name: str, blocks: int) -> str:
    """CompVis' name of a VAE's weight."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if ".mid_block.attentions.0." in name:
        for ours, theirs in ATTENTION.items():
            name = name.replace(f"mid_block.attentions.0.{ours}.", f"mid.attn_1.{theirs}.")
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{blocks - int(m[1])}.block", name)
    name = re.sub(
        r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{blocks - int(m[1])}.upsample", name
    )
    return f"first_stage_model.{name}"


def as_single_file(pipe: Any, path: Path) -> Path:
    """The pipeline's weights as one file, under CompVis' names."""
    weights: dict[str, Tensor] = {}
    for name, weight in pipe.unet.state_dict().items():
        weights[unet_name(name, pipe.unet.config.layers_per_block)] = weight
    for name, weight in pipe.vae.state_dict().items():
        weights[vae_name(name, len(pipe.vae.config.block_out_channels) - 1)] = weight
    for name, weight in pipe.text_encoder.state_dict().items():
        short = name.removeprefix("text_model.")
        weights[f"cond_stage_model.transformer.text_model.{short}"] = weight
    save_file({name: w.contiguous() for name, w in weights.items()}, path)
    return path

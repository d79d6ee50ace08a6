"""Name weights as the original Stable Diffusion does, for programs that read its checkpoints.

Source: the published checkpoints of Stable Diffusion 1, 2 and XL, as diffusers'
`from_single_file` and its script `convert_diffusers_to_original_sdxl.py` read and write them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_LAYER = re.compile(
    r"(?P<side>down|mid|up)_blocks?(?:\.(?P<block>\d+))?\."
    r"(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<number>\d+)\.(?P<rest>.+)"
)
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
OPEN_CLIP = {  # names outside of the layers
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def unet_name(name: str, layers: int) -> str:
    """Return the original name of a UNet's weight.

    Args:
        name: diffusers' name.
        layers: the residual layers of a block on the way down.
    """
    for ours, theirs in UNET_ENDS.items():
        if name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    match = UNET_LAYER.fullmatch(name)
    assert match, name
    side, kind, rest = match["side"], match["kind"], match["rest"]
    number, place = int(match["number"]), (layers + 1) * int(match["block"] or 0)
    if kind == "resnets":
        part, _, end = rest.partition(".")
        rest = f"{RESNET[part]}.{end}"
    inner = int(kind == "attentions")
    if side == "mid":
        return f"middle_block.{1 if inner else 2 * number}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{place + layers + 1}.0.op.{rest.removeprefix('conv.')}"
    if side == "down":
        return f"input_blocks.{place + number + 1}.{inner}.{rest}"
    return f"output_blocks.{place + number}.{inner}.{rest}"


def unet_weights(weights: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Return a UNet's weights under their original names.

    An upsampler comes last in its place among the output blocks, after an attention if there is
    one.
    """
    named = {}
    for name, weight in weights.items():
        if match := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.(.+)", name):
            attends = f"up_blocks.{match[1]}.attentions.0.norm.weight" in weights
            place = (layers + 1) * int(match[1]) + layers
            named[f"output_blocks.{place}.{1 + attends}.{match[2]}"] = weight
        else:
            named[unet_name(name, layers)] = weight
    return {f"model.diffusion_model.{name}": weight for name, weight in named.items()}


def vae_weights(weights: Mapping[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """Return a VAE's weights under their original names.

    The original's attention is made of convolutions of one pixel.

    Args:
        weights: the weights by diffusers' names.
        blocks: the number of blocks on the way down.
    """
    named = {}
    for name, weight in weights.items():
        new = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        new = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", new)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new)
        for ours, theirs in (("resnets", "block"), ("upsamplers.0", "upsample")):
            if match := re.search(rf"up_blocks\.(\d)\.{ours}", new):
                new = new.replace(match[0], f"up.{blocks - 1 - int(match[1])}.{theirs}")
        if ".mid_block.attentions.0." in new:
            begin, _, end = new.partition("mid_block.attentions.0.")
            part, _, side = end.rpartition(".")
            new = f"{begin}mid.attn_1.{VAE_ATTENTION[part]}.{side}"
            weight = weight[:, :, None, None] if weight.ndim == 2 else weight
        named[f"first_stage_model.{new}"] = weight
    return named


def clip_weights(weights: Mapping[str, Tensor], begin: str) -> dict[str, Tensor]:
    """Return the weights of OpenAI's CLIP under their original names, which are transformers'.

    Args:
        weights: the weights by transformers' names.
        begin: what the names begin with.
    """
    return {
        f"{begin}transformer.text_model.{name.removeprefix('text_model.')}": weight
        for name, weight in weights.items()
    }


def open_clip_weights(weights: Mapping[str, Tensor], begin: str) -> dict[str, Tensor]:
    """Return the weights of an OpenCLIP text encoder under their original names.

    The original holds the projections of queries, keys and values as one matrix, and the
    projection of the pooled state transposed.

    Args:
        weights: the weights by transformers' names.
        begin: what the names begin with.
    """
    own = {name.removeprefix("text_model."): weight for name, weight in weights.items()}
    named = {}
    for name, weight in own.items():
        if name in OPEN_CLIP:
            named[OPEN_CLIP[name]] = weight.T if name.startswith("text_proj") else weight
            continue
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        assert match, name
        layer, part, side = match.groups()
        home = f"transformer.resblocks.{layer}."
        if part in OPEN_CLIP_LAYER:
            named[f"{home}{OPEN_CLIP_LAYER[part]}.{side}"] = weight
        elif part == "self_attn.q_proj":
            sides = (own[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv")
            named[f"{home}attn.in_proj_{side}"] = torch.cat(list(sides))
    return {begin + name: weight for name, weight in named.items()}

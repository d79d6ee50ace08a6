"""SPM, the concept semi-permeable membrane (Lyu et al. 2024, arXiv 2312.16145)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from unlearn.concepts.concept import Concept
from unlearn.methods.base import Batch, batches_of
from unlearn.methods.negative_guidance import NegativeGuidance
from unlearn.models.text_states import encode_prompts, intercept_prompts, pack_text, unpack_text


class Membrane(nn.Module):
    """A linear or convolutional layer beside a rank-1 path whose strength each sample can set.

    `weight` and `bias` keep their names, so state dicts hold those of the plain network.

    Args:
        plain: the layer, which must not be grouped or padded by other than zeros.
    """

    strength: Tensor | None = None  # (B,); None: 1 everywhere

    def __init__(self, plain: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = plain.weight, plain.bias
        self.conv = isinstance(plain, nn.Conv2d)
        self.options = (plain.stride, plain.padding, plain.dilation) if self.conv else ()
        down = torch.empty(1, *plain.weight.shape[1:])
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        up = torch.zeros(plain.weight.shape[0], 1, *[1] * (down.ndim - 2))
        device = plain.weight.device
        self.down, self.up = nn.Parameter(down.to(device)), nn.Parameter(up.to(device))

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output plus strength times the path's."""
        apply = F.conv2d if self.conv else F.linear
        path = apply(apply(input, self.down, None, *self.options), self.up)
        if self.strength is not None:
            scale = self.strength.to(path.dtype)
            path = path * scale.view(-1, *[1] * (path.ndim - 1))
        return apply(input, self.weight, self.bias, *self.options) + path


def permeable(unet: UNet2DConditionModel) -> dict[str, nn.Linear | nn.Conv2d]:
    """Every linear and convolutional layer of the transformer blocks, by its name."""
    return {
        f"{block}.{name}": layer
        for block, module in unet.named_modules()
        if isinstance(module, Transformer2DModel)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


def insert_membranes(unet: UNet2DConditionModel) -> dict[str, Membrane]:
    """Replace every layer of `permeable`, and return the membranes."""
    membranes = {name: Membrane(layer) for name, layer in permeable(unet).items()}
    for name, membrane in membranes.items():
        parent, _, last = name.rpartition(".")
        setattr(unet.get_submodule(parent), last, membrane)
    return membranes


def check_membranes(unet: UNet2DConditionModel, weights: dict[str, Tensor]) -> None:
    """Refuse factors that are not those of this UNet's membranes.

    Raises:
        ValueError: names the first that is missing, or has no place or another shape.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, layer in permeable(unet).items():
        out, *rest = layer.weight.shape
        shapes[f"{name}.down"] = (1, *rest)
        shapes[f"{name}.up"] = (out, 1, *[1] * (len(rest) - 1))
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    for name in sorted(shapes.keys() | found.keys()):
        if shapes.get(name) != found.get(name):
            raise ValueError(
                f"{name}: the file's shape is {found.get(name)}, this UNet's {shapes.get(name)}; "
                "made for another base model"
            )


def strengths(pipe: DiffusionPipeline, prompts: list[str], targets: list[str]) -> Tensor:
    """How strong the membrane is for each prompt (N,), in [0, 1].

    The larger of the cosine of the text states and the share of the target's tokens that the
    prompt holds, for the target where that is largest.

    Source: Lyu et al. 2024, section 3.3 (facilitated transport).
    """
    held, own = ([{*ids[1:-1]} for ids in pipe.tokenizer(t).input_ids] for t in (prompts, targets))
    overlap = torch.tensor([[len(h & o) / len(o) for o in own] for h in held])
    states = encode_prompts(pipe, [*prompts, *targets], cut=True).flatten(1).float()
    text, target = states[: len(prompts)], states[len(prompts) :]
    cosine = F.cosine_similarity(text[:, None], target[None], dim=-1)
    return torch.maximum(cosine, overlap.to(cosine)).amax(dim=1).clamp(0, 1)


class SPM(NegativeGuidance):
    """Rank-1 membranes beside the transformer blocks' layers erase the target, and leave the rest.

    Args:
        anchoring: λ, the weight of the loss that leaves other text states' outputs alone.
        anchors: such states a batch.
        lr_warmup_steps: steps in which the learning rate rises from zero to `lr`.
        lr_cycles: falls from `lr` to zero, along a cosine each, in the steps after it; 0: none.
        options: lr (AdamW), eta, guidance, num_inference_steps,
            accumulate_grad_batches: see `NegativeGuidance`.

    Raises:
        ValueError: an option is out of its range.

    Source: Lyu et al. 2024, equations 4 to 8.
    """

    AT_INFERENCE: ClassVar[dict[str, Any]] = {"targets": list}
    POSITIVE = (*NegativeGuidance.POSITIVE, "anchors")

    def __init__(
        self,
        *args: Any,
        anchoring: float = 1000.0,
        anchors: int = 4,
        lr_warmup_steps: int = 0,
        lr_cycles: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)

    @classmethod
    def samples_at_once(cls, config: Any) -> int:
        """And the anchors."""
        return int(config.batch_size + config.method.anchors)

    @classmethod
    def samples(cls, config: Any) -> tuple[float, float]:
        """And the anchors of each batch, by the teacher and trained."""
        forward, trained = super().samples(config)
        anchors = config.method.anchors * batches_of(config)
        return forward + anchors, trained + anchors

    def choose_weights(self) -> dict[str, Tensor]:
        """The membranes' two factors; at the start the up-projections are zero."""
        return {
            f"{name}.{part}": getattr(membrane, part)
            for name, membrane in insert_membranes(self.network).items()
            for part in ("down", "up")
        }

    def prepare(self, pipe: DiffusionPipeline, concept: Concept) -> None:
        """And the targets, which decide the strength at inference."""
        super().prepare(pipe, concept)
        self.at_inference = {"targets": concept.targets}

    def configure_optimizers(self) -> Any:
        """AdamW."""
        return torch.optim.AdamW(self.weights, self.hparams.lr)

    def learning_rate(self, step: int, steps: int) -> float:
        """It rises in the warm-up, then falls along cosines that each begin at `lr` again."""
        hp = self.hparams
        if step < hp.lr_warmup_steps:
            return float(hp.lr * step / hp.lr_warmup_steps)
        progress = hp.lr_cycles * (step - hp.lr_warmup_steps) / max(1, steps - hp.lr_warmup_steps)
        return float(hp.lr * (1 + math.cos(math.pi * (progress % 1))) / 2)

    def other_states(self, states: Tensor, seeds: Tensor) -> Tensor:
        """Texts (anchors, T, D) as large as the batch's, kept the likelier the less alike.

        A sample of the latent anchoring: a Gaussian direction of 0.8 to 1.2 times the target
        states' norm, pooled ones for themselves, accepted with probability 1 - cosine.
        """
        generator = torch.Generator().manual_seed(int(seeds[0]))
        kept: list[Tensor] = []
        while len(kept) < self.hparams.anchors:
            own = states[len(kept) % len(states)].cpu()
            noise = torch.randn(own.shape, generator=generator)
            size = 0.8 + 0.4 * torch.rand((), generator=generator)
            parts = zip(
                *(unpack_text(self.network, text[None]) for text in (own, noise)), strict=True
            )
            drawn: Any = [p if p is None else p.norm() * size * n / n.norm() for p, n in parts]
            other = pack_text(*drawn)[0]
            cosine = F.cosine_similarity(own.flatten(), other.flatten(), dim=0)
            if torch.rand((), generator=generator) < 1 - cosine:
                kept.append(other)
        return torch.stack(kept).to(states)

    def loss(self, batch: Batch) -> Tensor:
        """Erasing: ESD's. Anchoring: λ MSE(ε_θ(z_t, c), ε*(z_t, c)) for other text states c."""
        erase, z_t, timesteps = self.erase(batch)
        others = self.other_states(batch["states"][:, 0], batch["seed"])
        chosen = torch.arange(len(others)) % len(z_t)
        args = (z_t[chosen], timesteps[chosen], others)
        kept = F.mse_loss(self.output(*args).float(), self.teacher(*args).float())
        return erase + self.hparams.anchoring * kept

    @staticmethod
    def install(
        pipe: DiffusionPipeline, weights: dict[str, Tensor], options: dict[str, Any]
    ) -> None:
        """Membranes in the pipeline's UNet, whose strength each prompt sets."""
        check_membranes(pipe.unet, weights)
        targets, membranes = options["targets"], insert_membranes(pipe.unet)
        with torch.no_grad():
            for name, weight in weights.items():
                layer, _, part = name.rpartition(".")
                getattr(membranes[layer], part).copy_(weight)
        for membrane in membranes.values():
            membrane.to(pipe.unet.device, pipe.unet.dtype).requires_grad_(False)

        def set_strength(asked: dict[str, Any]) -> None:
            prompts = [asked["prompt"]] if isinstance(asked["prompt"], str) else asked["prompt"]
            strength = strengths(pipe, prompts, targets)
            strength = strength.repeat_interleave(asked["num_images_per_prompt"])
            guided = asked["do_classifier_free_guidance"]
            for membrane in membranes.values():
                membrane.strength = strength.repeat(2) if guided else strength

        intercept_prompts(pipe, set_strength)

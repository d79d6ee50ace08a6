"""SPM, the concept semi-permeable membrane (Lyu et al. 2024, arXiv 2312.16145)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from unlearn.concepts.concept import Concept
from unlearn.methods.manual_steps import Batch
from unlearn.methods.negative_guidance import NegativeGuidance, NegativeGuidanceOptions
from unlearn.methods.options import MethodOptions
from unlearn.methods.plan import TrainingPlan
from unlearn.models.text_states import encode_prompts, intercept_prompts, pack_text, unpack_text
from unlearn.utils.options import option


@dataclass(frozen=True, kw_only=True)
class SPMOptions(NegativeGuidanceOptions):
    """Hold the options of `SPM`."""

    anchoring: float = option(
        1000.0,
        at_least=0,
        help="λ, the weight of the loss that keeps other texts' outputs",
        at_most=10**6,
    )
    anchors: int = option(4, at_least=1, help="such texts a batch", at_most=1000)
    lr_warmup_steps: int = option(
        0,
        at_least=0,
        help="first steps, in which the learning rate rises from zero to lr",
        at_most=10**8,
    )
    lr_cycles: int = option(
        0,
        at_least=0,
        help="cosines from lr to zero in the steps after them; 0: lr is constant",
        at_most=10_000,
    )


class Membrane(nn.Module):
    """Add to a linear or convolutional layer a rank-1 path whose strength each sample can set.

    `weight` and `bias` keep their names, so state dicts name them as the plain network does.

    Args:
        plain: the layer. It must not be grouped, nor padded by other than zeros.
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
        """Return the layer's output plus strength times the path's."""
        apply = F.conv2d if self.conv else F.linear
        path = apply(apply(input, self.down, None, *self.options), self.up)
        if self.strength is not None:
            scale = self.strength.to(path.dtype)
            path = path * scale.view(-1, *[1] * (path.ndim - 1))
        return apply(input, self.weight, self.bias, *self.options) + path


def permeable(unet: UNet2DConditionModel) -> dict[str, nn.Linear | nn.Conv2d]:
    """Return the linear and convolutional layers of the transformer blocks, by name."""
    return {
        f"{block}.{name}": layer
        for block, module in unet.named_modules()
        if isinstance(module, Transformer2DModel)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


def insert_membranes(unet: UNet2DConditionModel) -> dict[str, Membrane]:
    """Replace every layer of `permeable` by a membrane, and return the membranes by name."""
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
    """Return how strong the membrane is for each prompt (N,), in [0, 1].

    The strength for one target is the larger of two numbers: the cosine of the text states, and the
    share of the target's tokens that the prompt holds. The result is the largest over the targets.

    Source: Lyu et al. 2024, section 3.3 (facilitated transport).
    """
    held, own = ([{*ids[1:-1]} for ids in pipe.tokenizer(t).input_ids] for t in (prompts, targets))
    overlap = torch.tensor([[len(h & o) / len(o) for o in own] for h in held])
    states = encode_prompts(pipe, [*prompts, *targets], cut=True).flatten(1).float()
    text, target = states[: len(prompts)], states[len(prompts) :]
    cosine = F.cosine_similarity(text[:, None], target[None], dim=-1)
    return torch.maximum(cosine, overlap.to(cosine)).amax(dim=1).clamp(0, 1)


class SPM(NegativeGuidance):
    """Erase the target by rank-1 membranes beside the transformer blocks' layers.

    Latent anchoring leaves the rest of the model alone.

    Raises:
        ValueError: an option is out of its range.

    Source: Lyu et al. 2024, equations 4 to 8.
    """

    Options: ClassVar[type[MethodOptions]] = SPMOptions
    options: SPMOptions
    AT_INFERENCE: ClassVar[dict[str, Any]] = {"targets": list}

    @classmethod
    def samples_at_once(cls, options: Any, plan: TrainingPlan) -> int:
        """Return the samples of a batch and of its anchors."""
        return int(plan.batch_size + options.anchors)

    @classmethod
    def samples(cls, options: Any, plan: TrainingPlan) -> tuple[float, float]:
        """Return how many samples a device's run takes through the network, see the base class.

        The anchors of each batch are further samples of the teacher and of the trained model.
        """
        forward, trained = super().samples(options, plan)
        anchors = options.anchors * plan.steps * options.accumulate_grad_batches
        return forward + anchors, trained + anchors

    def choose_weights(self) -> dict[str, Tensor]:
        """Return the membranes' two factors; the up-projections begin at zero."""
        return {
            f"{name}.{part}": getattr(membrane, part)
            for name, membrane in insert_membranes(self.network).items()
            for part in ("down", "up")
        }

    def prepare(self, pipe: DiffusionPipeline, concept: Concept) -> None:
        """Take the targets too, which set the strength at inference."""
        super().prepare(pipe, concept)
        self.at_inference = {"targets": concept.targets}

    def configure_optimizers(self) -> Any:
        """Return AdamW for the membranes."""
        return torch.optim.AdamW(self.weights, self.options.lr)

    def learning_rate(self, step: int, steps: int) -> float:
        """Return the learning rate of the membranes.

        It rises in the warm-up, then falls along cosines that each begin at `lr` again.
        """
        options = self.options
        warmup_steps = options.lr_warmup_steps
        if step < warmup_steps:
            return float(options.lr * step / warmup_steps)
        progress = options.lr_cycles * (step - warmup_steps) / max(1, steps - warmup_steps)
        return float(options.lr * (1 + math.cos(math.pi * (progress % 1))) / 2)

    def other_states(self, states: Tensor, seeds: Tensor) -> Tensor:
        """Return random texts for the latent anchoring, (anchors, T, D).

        Each is a Gaussian direction of 0.8 to 1.2 times the norm of a target text. Pooled states
        are drawn for themselves. A text is accepted with probability 1 - cosine of the two, so the
        likelier the less alike they are.

        Args:
            states: the batch's target texts, (B, T, D).
            seeds: the samples' seeds (B,), of which the first seeds the draw.
        """
        generator = torch.Generator().manual_seed(int(seeds[0]))
        kept: list[Tensor] = []
        while len(kept) < self.options.anchors:
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
        """Return ESD's loss plus λ MSE(ε_θ(z_t, c), ε*(z_t, c)) for other texts c, 0-dim."""
        erase, z_t, timesteps = self.erase(batch)
        others = self.other_states(batch["states"][:, 0], batch["seed"])
        chosen = torch.arange(len(others)) % len(z_t)
        args = (z_t[chosen], timesteps[chosen], others)
        kept = F.mse_loss(self.output(*args).float(), self.teacher(*args).float())
        return erase + self.options.anchoring * kept

    @staticmethod
    def install(
        pipe: DiffusionPipeline, weights: dict[str, Tensor], at_inference: dict[str, Any]
    ) -> None:
        """Insert membranes in the pipeline's UNet, whose strength each prompt sets.

        Args:
            pipe: the pipeline, which changes in place.
            weights: the membranes' factors, by their names in the UNet.
            at_inference: "targets", what the pipeline forgets.

        Raises:
            ValueError: the factors are not those of this UNet; nothing is changed.
        """
        check_membranes(pipe.unet, weights)
        targets, membranes = at_inference["targets"], insert_membranes(pipe.unet)
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

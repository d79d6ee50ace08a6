"""What every trained method shares: the network, its frozen teacher, one collective a step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import lightning as L
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.func import functional_call

from unlearn.concepts.concept import Concept
from unlearn.data.resumable_loader import Batches
from unlearn.methods.surgery import clip_to_norm
from unlearn.models.cross_attention import cross_attention_layers
from unlearn.models.frozen_layers import forget_inputs
from unlearn.models.noise_schedule import NoiseSchedule
from unlearn.models.pipeline import denoiser_name
from unlearn.models.text_states import network_arguments, predict_output
from unlearn.utils.checks import check_choice, check_number
from unlearn.utils.errors import NotFiniteError

Batch = dict[str, Tensor]
Metrics = dict[str, Tensor]


class UnlearningModule(L.LightningModule):
    """A network some of whose weights train, by manual optimization; the base model is its teacher.

    A method with one loss defines `loss` and `configure_optimizers`. The keyword arguments of its
    constructors are its options, and its `hparams`; positional ones are passed on. Class methods
    say, of a run's config and before there is a network, what the run can do and what it takes.

    Attributes:
        LACKS: options of its parents that the method does not have.
        AT_INFERENCE: the types of what `at_inference` holds, by key; empty: it holds nothing.
        CHOICES: the values that an option may have, where it is not any of its type.
        POSITIVE: options that must be more than 0; every other number is at least 0.
        MOST: the largest value of an option, where it has one.
        closed_form: the method solves for its weights in `prepare` and takes no step (steps=0).
        of_unets: the method is bound to a UNet, its cross-attention or its sampler.
        images_of: what the unlearn half's images show, "anchor" or "target".
        at_inference: what `install` needs to know; empty: the weights alone are the result.
        clip_norm: what the norm of the one loss's gradient is clipped to; None: not clipped.

    Args:
        network: the base network; its trained weights change in place. It is registered under the
            pipeline's name for it, `part`, so checkpoints name weights as the pipeline does.
        schedule: of the noise.
        accumulate_grad_batches: batches a step; their gradients are averaged before the one
            collective.

    Raises:
        ValueError: see `check_options`.
    """

    LACKS: ClassVar[tuple[str, ...]] = ()
    AT_INFERENCE: ClassVar[dict[str, Any]] = {}
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {}
    POSITIVE: ClassVar[tuple[str, ...]] = ("accumulate_grad_batches",)
    MOST: ClassVar[dict[str, float]] = {}
    closed_form: ClassVar[bool] = False
    of_unets: ClassVar[bool] = False
    images_of: ClassVar[str] = "anchor"
    clip_norm: ClassVar[float | None] = None

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        *,
        accumulate_grad_batches: int = 1,
    ) -> None:
        super().__init__()
        networks = ["network", "schedule"]
        self.save_hyperparameters(ignore=networks, logger=False)  # which has the whole config
        self.check_options(self.hparams)
        self.automatic_optimization = False
        self.strict_loading = False
        self.accumulate_grad_batches, self.part, self.schedule = (
            accumulate_grad_batches,
            denoiser_name(network),
            schedule,
        )
        self.add_module(self.part, network.requires_grad_(False))
        self.trained_weights = self.choose_weights()
        for number, weight in enumerate(self.weights):
            weight.requires_grad_(True)
            self.register_buffer(f"base_{number}", weight.detach().clone(), persistent=False)
        forget_inputs(network)
        self.at_inference: dict[str, Any] = {}
        self.sums: list[Tensor] = []  # of the gradients of the step's batches so far
        self.seen: list[Metrics] = []  # of each of them

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Refuse options that have none of their allowed values.

        Raises:
            ValueError: names the option, its value and what is allowed.
        """
        for key, value in options.items():
            if key in cls.CHOICES:
                check_choice(f"method.{key}", value, cls.CHOICES[key])
            elif isinstance(value, int | float):
                above, least = (0, None) if key in cls.POSITIVE else (None, 0)
                most = cls.MOST.get(key)
                check_number(f"method.{key}", value, above=above, at_least=least, at_most=most)

    @classmethod
    def check_run(cls, config: Any) -> None:
        """Refuse a run whose other settings the method could do nothing with.

        Raises:
            ValueError: names the key, the value and what is allowed.
        """
        steps, warmup_steps = config.steps, cls.warmup_length(config.method)
        if cls.closed_form:
            if steps:
                raise ValueError(f"steps={steps}: {config.method.name} takes none, so steps=0")
        elif steps <= warmup_steps:
            alone = (
                f" the first {warmup_steps} (method.warmup_steps) train the discriminator alone;"
            )
            raise ValueError(
                f"steps={steps}:{alone if warmup_steps else ''} at least "
                f"{warmup_steps + 1} is needed"
            )

    @classmethod
    def warmup_length(cls, options: Any) -> int:
        """How many steps come first in which the network does not train; by default none."""
        return 0

    @classmethod
    def samples_at_once(cls, config: Any) -> int:
        """How many samples one backward pass goes through; by default those of a batch."""
        return int(config.batch_size)

    @classmethod
    def samples(cls, config: Any) -> tuple[float, float]:
        """How many samples a run's steps take through the network: forward alone, and trained.

        By default one of each for every sample of a batch, such as the teacher's output and the
        trained model's.
        """
        number = config.batch_size * batches_of(config)
        return number, number

    def choose_weights(self) -> dict[str, Tensor]:
        """The weights that train, by their names in the network: keys and values of text."""
        layers = cross_attention_layers(self.network)
        return {f"{name}.weight": layer.weight for name, layer in layers.items()}

    @property
    def network(self) -> Any:
        """The network that denoises."""
        return getattr(self, self.part)

    @property
    def weights(self) -> list[Tensor]:
        """The trained weights."""
        return list(self.trained_weights.values())

    @property
    def base(self) -> list[Tensor]:
        """The base model's own values of the trained weights."""
        return [getattr(self, f"base_{number}") for number in range(len(self.weights))]

    def output(self, z_t: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        """The trained model's output (B, C, h, w); `states` are texts, see `conditions`."""
        return predict_output(self.network, z_t, self.schedule.times[timesteps], states)

    @torch.no_grad()
    def teacher(self, z_t: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        """The frozen base model's output (B, C, h, w): the same network with its own weights."""
        base = dict(zip(self.trained_weights, self.base, strict=True))
        given = network_arguments(self.network, z_t, self.schedule.times[timesteps], states)
        return functional_call(self.network, base, (z_t,), given).sample

    def prepare(self, pipe: DiffusionPipeline, concept: Concept) -> None:
        """Take what the method needs of the concept's text before training; by default nothing."""

    def feed(self, loader: Batches) -> Iterable[Batch]:
        """The batches to train on, from those of `PairDataModule`; by default they as they are."""
        return loader

    @staticmethod
    def install(
        pipe: DiffusionPipeline, weights: dict[str, Tensor], options: dict[str, Any]
    ) -> None:
        """Make a pipeline sample as the method wants, where changed weights alone do not.

        Args:
            pipe: changes in place.
            weights: those of the run's file, by their names in the network.
            options: the run's `at_inference`.

        Raises:
            ValueError: the weights do not fit the pipeline; nothing is changed.
        """
        raise NotImplementedError

    def loss(self, batch: Batch) -> Tensor:
        """The loss of one batch, see `PairDataset`, a 0-dim tensor."""
        raise NotImplementedError

    def learning_rate(self, step: int, steps: int) -> float:
        """Of the weights at step `step` of the `steps` that unlearn; by default always `lr`."""
        return float(self.hparams.lr)

    @property
    def unlearning_steps(self) -> int:
        """How many steps of the run unlearn: all but the warm-up."""
        steps = int(self.trainer.num_training_batches) // self.accumulate_grad_batches
        return steps - self.warmup_length(self.hparams)

    def set_learning_rate(self, optimizer: Any, step: int) -> None:
        """Make it that of step `step`, of those that unlearn."""
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(step, self.unlearning_steps)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """The gradient of `loss` on one batch; after the step's last batch, the step."""
        step, number = divmod(batch_idx, self.accumulate_grad_batches)
        loss = self.loss(batch)
        metrics = {"unlearn_loss": loss.detach()}
        self.check_losses(metrics, batch, step)
        gradient = list(torch.autograd.grad(loss, self.weights, materialize_grads=True))
        last = number == self.accumulate_grad_batches - 1
        metrics = self.mean_metrics(metrics, last)
        if mean := self.mean_gradients(gradient, last):
            if self.clip_norm is not None:
                mean, metrics["norm/unlearn"] = clip_to_norm(mean, self.clip_norm)
            optimizer: Any = self.optimizers()
            self.set_learning_rate(optimizer, step)
            optimizer_step(optimizer, self.weights, mean)
            self.log_step(metrics, step, "unlearn_loss")

    def check_losses(self, metrics: Metrics, batch: Batch, step: int) -> None:
        """Refuse losses that are not finite, before anything is made of them.

        Raises:
            NotFiniteError: names the losses, and holds the batch.
        """
        losses = {name: value for name, value in metrics.items() if name.endswith("_loss")}
        if not torch.stack([*losses.values()]).isfinite().all():
            values = {name: value.item() for name, value in losses.items()}
            raise NotFiniteError(step, values, batch)

    def log_step(self, metrics: Metrics, step: int, shown: str) -> None:
        """Send a step's metrics to the loggers, and one of them to the progress bar.

        At once, for a checkpoint to hold them; Lightning's own way is after the step's callbacks.
        """
        self.log(shown.split("_")[0], metrics[shown], prog_bar=True, logger=False)
        if (step + 1) % self.trainer.log_every_n_steps == 0:
            values = {name: float(value) for name, value in metrics.items()}
            for logger in self.trainer.loggers:
                logger.log_metrics(values, step)

    def mean_metrics(self, metrics: Metrics, last: bool) -> Metrics:
        """After the step's last batch, the means over its batches; before, nothing."""
        self.seen.append(metrics)
        if not last:
            return {}
        seen, self.seen = self.seen, []
        return {name: torch.stack([own[name] for own in seen]).mean() for name in metrics}

    def mean_gradients(self, gradients: list[Tensor], last: bool) -> list[Tensor]:
        """After the step's last batch, the mean over its batches and the ranks; before, nothing.

        The mean over ranks is one collective.
        """
        gradients = [g / self.accumulate_grad_batches for g in gradients]
        if self.sums:
            gradients = [a + b for a, b in zip(self.sums, gradients, strict=True)]
        self.sums = [] if last else gradients
        return self.reduce(gradients) if last else []

    def reduce(self, gradients: list[Tensor]) -> list[Tensor]:
        """The mean of gradients over ranks, in one collective."""
        if self.trainer.world_size == 1:
            return gradients
        flat = torch.cat([g.flatten() for g in gradients])
        flat = self.trainer.strategy.reduce(flat, reduce_op="mean")
        parts = flat.split([g.numel() for g in gradients])
        return [p.view_as(g) for p, g in zip(parts, gradients, strict=True)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what was trained: the network's trained weights and all else of the method."""
        trained = {f"{self.part}.{name}" for name in self.trained_weights}
        checkpoint["state_dict"] = {
            k: v
            for k, v in checkpoint["state_dict"].items()
            if k in trained or not k.startswith(f"{self.part}.")
        }


def batches_of(config: Any) -> int:
    """How many batches a device's steps take."""
    return int(config.steps * config.method.get("accumulate_grad_batches", 1))


def optimizer_step(optimizer: Any, parameters: list[Any], gradients: list[Tensor]) -> None:
    """One optimizer step along given gradients."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad()

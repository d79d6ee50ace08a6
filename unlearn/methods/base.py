"""What every method shares: the network, its frozen teacher, one collective a step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.func import functional_call

from unlearn.concepts.concept import Concept
from unlearn.data.resumable_loader import ResumableLoader
from unlearn.methods.gradients import Gradients
from unlearn.methods.manual_steps import Batch, ManualSteps, optimizer_step
from unlearn.methods.options import MethodOptions, batches_per_step
from unlearn.methods.plan import TrainingPlan
from unlearn.methods.surgery import clip_to_norm
from unlearn.models.cross_attention import cross_attention_layers
from unlearn.models.frozen_layers import drop_frozen_inputs
from unlearn.models.noise_schedule import NoiseSchedule
from unlearn.models.pipeline import denoiser_name
from unlearn.models.text_states import network_arguments, predict_output
from unlearn.utils.options import check_options


class UnlearningModule(ManualSteps):
    """Train some weights of a network by manual optimization; the base model is the teacher.

    A method with one loss defines `loss` and `configure_optimizers`. The class methods answer
    before there is a network. They take the method's options and the plan of the run.

    Attributes:
        name: the method's name, which `register_method` sets.
        paper: where the method was published, such as "arXiv 2405.15304".
        title: the method's name in prose.
        Options: the dataclass of the method's options.
        AT_INFERENCE: the types of what `at_inference` holds, by key; empty: it holds nothing.
        closed_form: the method solves for its weights in `prepare` and takes no step (steps=0).
        of_unets: the method is bound to a UNet, its cross-attention or its sampler.
        images_of: what the unlearn half's images show, "anchor" or "target".
        clip_norm: what the norm of the one loss's gradient is clipped to; None: not clipped.
        options: an instance of `Options`.
        at_inference: what `install` needs to know; empty: the weights alone are the result.

    Args:
        network: the base network, whose trained weights change in place. The module registers it
            under the pipeline's name for it, `part`. Checkpoints so name weights as the pipeline
            does.
        schedule: the schedule of the noise.
        options: an instance of `Options`.

    Raises:
        ValueError: an option has none of its allowed values.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    title: ClassVar[str] = ""
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    AT_INFERENCE: ClassVar[dict[str, Any]] = {}
    closed_form: ClassVar[bool] = False
    of_unets: ClassVar[bool] = False
    images_of: ClassVar[str] = "anchor"
    clip_norm: ClassVar[float | None] = None

    options: Any  # a subclass names its own dataclass

    def __init__(self, network: nn.Module, schedule: NoiseSchedule, options: MethodOptions) -> None:
        super().__init__(batches_per_step(options))
        assert isinstance(options, self.Options), f"{options} are no {self.Options.__name__}"
        check_options(options, "method")
        self.options = options
        self.strict_loading = False
        self.part, self.schedule = denoiser_name(network), schedule
        self.add_module(self.part, network.requires_grad_(False))
        self.trained_weights = self.choose_weights()
        for number, weight in enumerate(self.weights):
            weight.requires_grad_(True)
            self.register_buffer(f"base_{number}", weight.detach().clone(), persistent=False)
        drop_frozen_inputs(network)
        self.at_inference: dict[str, Any] = {}

    @classmethod
    def check_plan(cls, options: Any, plan: TrainingPlan) -> None:
        """Refuse a run whose other settings leave the method nothing to do.

        Raises:
            ValueError: names the key, the value and what is allowed.
        """
        warmup_steps = cls.warmup_length(options)
        if cls.closed_form:
            if plan.steps:
                raise ValueError(f"steps={plan.steps}: {cls.name} takes none, so steps=0")
        elif plan.steps <= warmup_steps:
            alone = (
                f" the first {warmup_steps} (method.warmup_steps) train the discriminator alone;"
            )
            raise ValueError(
                f"steps={plan.steps}:{alone if warmup_steps else ''} at least "
                f"{warmup_steps + 1} is needed"
            )

    @classmethod
    def warmup_length(cls, options: Any) -> int:
        """Return how many steps come before the network trains; by default 0."""
        return 0

    @classmethod
    def samples_at_once(cls, options: Any, plan: TrainingPlan) -> int:
        """Return how many samples one backward pass holds; by default those of a batch."""
        return plan.batch_size

    @classmethod
    def samples(cls, options: Any, plan: TrainingPlan) -> tuple[float, float]:
        """Return how many samples a device's run takes through the network.

        By default every sample of a batch goes through it twice: without gradient, as for the
        teacher's output, and with gradient.

        Returns:
            The samples that go forward without gradient, and those that are trained on.
        """
        number = plan.batch_size * plan.steps * batches_per_step(options)
        return number, number

    def choose_weights(self) -> dict[str, Tensor]:
        """Return the weights to train, by their names in the network.

        By default these are the key and value projections of the text in the cross-attentions.
        """
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
        """The base model's values of the trained weights."""
        return [getattr(self, f"base_{number}") for number in range(len(self.weights))]

    def output(self, z_t: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        """Return the trained model's output.

        Args:
            z_t: noisy latents (B, C, h, w).
            timesteps: numbers of the schedule's timesteps (B,).
            states: texts as `encode_text` returns them, one a sample.

        Returns:
            The output (B, C, h, w).
        """
        return predict_output(self.network, z_t, self.schedule.times[timesteps], states)

    @torch.no_grad()
    def teacher(self, z_t: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        """Return the frozen base model's output (B, C, h, w); the arguments are `output`'s.

        The teacher is the same network with the base model's values of the trained weights.
        """
        base = dict(zip(self.trained_weights, self.base, strict=True))
        given = network_arguments(self.network, z_t, self.schedule.times[timesteps], states)
        return functional_call(self.network, base, (z_t,), given).sample

    def prepare(self, pipe: DiffusionPipeline, concept: Concept) -> None:
        """Take what the method needs of the concept's text before training; by default nothing.

        Args:
            pipe: the pipeline whose network the method trains.
            concept: the concept that the model forgets.
        """

    def feed(self, loader: ResumableLoader) -> Iterable[Batch]:
        """Return the batches to train on; by default those of the loader, unchanged.

        Args:
            loader: the batches of `PairDataModule`.
        """
        return loader

    @staticmethod
    def install(
        pipe: DiffusionPipeline, weights: dict[str, Tensor], at_inference: dict[str, Any]
    ) -> None:
        """Change how a pipeline samples, where changed weights alone are not the result.

        Args:
            pipe: the pipeline, which changes in place.
            weights: the weights of the run's file, by their names in the network.
            at_inference: the run's `at_inference`.

        Raises:
            ValueError: the weights do not fit the pipeline; nothing is changed.
        """
        raise NotImplementedError

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of one batch of `PairDataset`, a 0-dim tensor."""
        raise NotImplementedError

    def learning_rate(self, step: int, steps: int) -> float:
        """Return the learning rate of the trained weights; by default always `lr`.

        Args:
            step: the number of the step, from 0, among those that unlearn.
            steps: how many steps unlearn.
        """
        return float(self.options.lr)

    @property
    def unlearning_steps(self) -> int:
        """The number of the run's steps that unlearn, which is all but the warm-up."""
        steps = int(self.trainer.num_training_batches) // self.accumulate_grad_batches
        return steps - self.warmup_length(self.options)

    def set_learning_rate(self, optimizer: Any, step: int) -> None:
        """Give the optimizer the learning rate of a step.

        Args:
            optimizer: the optimizer of the trained weights.
            step: the number of the step, from 0, among those that unlearn.
        """
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(step, self.unlearning_steps)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the gradient of `loss` on one batch; after the step's last batch, make the step."""
        step, number = divmod(batch_idx, self.accumulate_grad_batches)
        loss = self.loss(batch)
        metrics = {"loss/unlearn": loss.detach()}
        self.check_losses(metrics, batch, step)
        gradient = list(torch.autograd.grad(loss, self.weights, materialize_grads=True))
        last = number == self.accumulate_grad_batches - 1
        metrics = self.mean_metrics(metrics, last)
        mean = self.mean_gradients(Gradients(unlearn=gradient), last)
        if mean is not None:
            g_u = list(mean.unlearn)
            if self.clip_norm is not None:
                g_u, metrics["norm/unlearn"] = clip_to_norm(g_u, self.clip_norm)
            optimizer: Any = self.optimizers()
            self.set_learning_rate(optimizer, step)
            optimizer_step(optimizer, self.weights, g_u)
            self.log_step(metrics, step, "loss/unlearn")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trained weights and all else of the method; drop the network's frozen ones."""
        trained = {f"{self.part}.{name}" for name in self.trained_weights}
        checkpoint["state_dict"] = {
            k: v
            for k, v in checkpoint["state_dict"].items()
            if k in trained or not k.startswith(f"{self.part}.")
        }

"""What every trained method shares: the network, its frozen teacher, one collective a step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import lightning as L
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from torch.func import functional_call

from unlearn.backbone import cross_attention_layers
from unlearn.batches import Batches
from unlearn.concepts import Concept
from unlearn.conditions import arguments, predict
from unlearn.faults import NotFiniteError
from unlearn.surgery import clip_to_norm

Batch = dict[str, Tensor]
Metrics = dict[str, Tensor]


class UnlearningModule(L.LightningModule):
    """A UNet some of whose weights train, by manual optimization; the base model is its teacher.

    A method with one loss defines `loss` and `configure_optimizers`. The keyword arguments of its
    constructors are its options, and its `hparams`; positional ones are passed on.

    Attributes:
        LACKS: options of its parents that the method does not have.
        closed_form: the method solves for its weights in `prepare` and takes no step (steps=0).
        images_of: what the unlearn half's images show, "anchor" or "target".
        at_inference: what `install` needs to know; empty: the weights alone are the result.
        clip_norm: what the norm of the one loss's gradient is clipped to; None: not clipped.

    Args:
        unet: the base network; its trained weights change in place.
        alphas_cumprod: ᾱ of the noise schedule (T,).
        prediction_type: "epsilon" or "v_prediction".
        accumulate: batches a step; their gradients are averaged before the one collective.

    Raises:
        ValueError: `accumulate` is less than 1.
    """

    LACKS: ClassVar[tuple[str, ...]] = ()
    closed_form: ClassVar[bool] = False
    images_of: ClassVar[str] = "anchor"
    clip_norm: ClassVar[float | None] = None

    def __init__(
        self,
        unet: UNet2DConditionModel,
        alphas_cumprod: Tensor,
        prediction_type: str = "epsilon",
        *,
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["unet", "alphas_cumprod", "prediction_type"])
        if accumulate < 1:
            raise ValueError(f"method.accumulate={accumulate}: at least one batch a step is needed")
        self.automatic_optimization = False
        self.strict_loading = False
        self.accumulate, self.prediction_type = accumulate, prediction_type
        self.unet = unet.requires_grad_(False)
        self.trained_weights = self.choose_weights()
        for number, weight in enumerate(self.weights):
            weight.requires_grad_(True)
            self.register_buffer(f"base_{number}", weight.detach().clone(), persistent=False)
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)
        self.at_inference: dict[str, Any] = {}
        self.sums: list[Tensor] = []  # of the gradients of the step's batches so far

    def choose_weights(self) -> dict[str, Tensor]:
        """The weights that train, by their names in the UNet: cross-attention keys and values."""
        layers = cross_attention_layers(self.unet)
        return {f"{name}.weight": layer.weight for name, layer in layers.items()}

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
        return predict(self.unet, z_t, timesteps, states)

    @torch.no_grad()
    def teacher(self, z_t: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        """The frozen base model's output (B, C, h, w): the same network with its own weights."""
        base = dict(zip(self.trained_weights, self.base, strict=True))
        text = arguments(self.unet, z_t, states)
        return functional_call(self.unet, base, (z_t, timesteps), text).sample

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
            weights: those of the run's file, by their names in the UNet.
            options: the run's `at_inference`.

        Raises:
            ValueError: the weights do not fit the pipeline; nothing is changed.
        """
        raise NotImplementedError

    def loss(self, batch: Batch) -> Tensor:
        """The loss of one batch, see `PairDataset`, a 0-dim tensor."""
        raise NotImplementedError

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """The gradient of `loss` on one batch; after the step's last batch, the step."""
        step, number = divmod(batch_idx, self.accumulate)
        loss = self.loss(batch)
        metrics = {"unlearn_loss": loss.detach()}
        self.check_losses(metrics, batch, step)
        gradient = list(torch.autograd.grad(loss, self.weights, materialize_grads=True))
        mean = self.mean_gradients(gradient, last=number == self.accumulate - 1)
        if mean:
            if self.clip_norm is not None:
                mean, metrics["norm/unlearn"] = clip_to_norm(mean, self.clip_norm)
            step_with(self.optimizers(), self.weights, mean)
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

    def mean_gradients(self, gradients: list[Tensor], last: bool) -> list[Tensor]:
        """After the step's last batch, the mean over its batches and the ranks; before, nothing.

        The mean over ranks is one collective.
        """
        gradients = [g / self.accumulate for g in gradients]
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
        """Keep only what was trained: the UNet's trained weights and all else of the method."""
        trained = {f"unet.{name}" for name in self.trained_weights}
        checkpoint["state_dict"] = {
            k: v
            for k, v in checkpoint["state_dict"].items()
            if k in trained or not k.startswith("unet.")
        }


def step_with(optimizer: Any, parameters: list[Any], gradients: list[Tensor]) -> None:
    """One optimizer step along given gradients."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad()

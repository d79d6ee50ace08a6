"""Write the checkpoints of a run, from which the run resumes exactly."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO

from unlearn.training.metrics_file import MetricsFile
from unlearn.training.signals import SignalHandler
from unlearn.utils.atomic import atomic_path
from unlearn.utils.errors import Interrupted, LostRankError, NotFiniteError, RunError


def checkpoint_step(checkpoint: Path) -> int:
    """Return the number of steps that were made when a checkpoint was written.

    Raises:
        ValueError: the file is damaged, or is no checkpoint of a run.
    """
    try:
        with zipfile.ZipFile(checkpoint) as file:
            if damaged := file.testzip():  # compares all checksums, as torch.load does not
                raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        check_state(state)
        return int(state["step"])
    except (
        zipfile.BadZipFile,
        pickle.UnpicklingError,
        OSError,
        ValueError,
        LookupError,
        RuntimeError,
        TypeError,
        AttributeError,
        EOFError,
    ) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{checkpoint}: damaged, or not a checkpoint of a run ({reason}); without that file "
            "the same command begins at the first step"
        ) from error


def check_state(state: Any) -> None:
    """Refuse the content of a checkpoint that lacks what a run resumes from.

    Raises:
        ValueError: the content is refused; says why.
    """
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}")
    needed = {"step": int, "metrics": list, "state_dict": dict, "optimizer_states": list,
              "loops": dict, "epoch": int, "global_step": int}  # fmt: skip
    for key, kind in needed.items():
        if not isinstance(state.get(key), kind):
            raise ValueError(f"{key} is not there, or no {kind.__name__}")
    if state["step"] < 1 or not all(isinstance(row, dict) for row in state["metrics"]):
        raise ValueError(f"step={state['step']}, or a row of metrics that is no dictionary")


def check_fits(state: dict[str, Any], module: L.LightningModule) -> None:
    """Refuse the weights of a checkpoint that are not those of the module that goes on.

    Args:
        state: the content of the checkpoint.
        module: the method.

    Raises:
        RunError: a weight is missing, or has another shape.
    """
    own = module.state_dict()
    saved: dict[str, Any] = {"state_dict": own}
    module.on_save_checkpoint(saved)  # leaves what a checkpoint holds
    shapes = {name: tuple(weight.shape) for name, weight in saved["state_dict"].items()}
    found = {name: tuple(getattr(w, "shape", ())) for name, w in state["state_dict"].items()}
    for name in sorted({*shapes, *found}):
        if shapes.get(name) != found.get(name):
            raise RunError(
                f"the checkpoint does not fit this run: {name} has shape {found.get(name)}, not "
                f"{shapes.get(name)}; without that file the same command begins at the first step"
            )


class AtomicCheckpointIO(TorchCheckpointIO):
    """A checkpoint writer for Lightning that never leaves a half-written file.

    Checkpoints are first written beside their place. Lightning's own writer uses the folder for
    temporary files, where a killed process leaves them.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint's file in full before it takes its name.

        Raises:
            OSError: the disk is full, or the file cannot be written.
        """
        buffer = io.BytesIO()  # written here, not to a file: a full disk is then an OSError
        torch.save(checkpoint, buffer)
        Path(path).parent.mkdir(exist_ok=True)
        with atomic_path(Path(path)) as partial:
            partial.write_bytes(buffer.getbuffer())


class Checkpoints(Callback):
    """A callback that writes `checkpoints/last.ckpt`, from which a run resumes.

    A checkpoint is written every `every` steps, at the end, and when a signal came. It holds what
    was trained, the optimizers' states, the position in the batches, and the rows of metrics.csv.
    This must be the last callback: a checkpoint means that all other callbacks have done their work
    for its step.

    Args:
        run: the run directory.
        every: steps between checkpoints.
        metrics: the run's metrics.csv.
        stop: knows whether a signal came.
    """

    def __init__(self, run: Path, every: int, metrics: MetricsFile, stop: SignalHandler) -> None:
        self.run, self.path = run, run / "checkpoints" / "last.ckpt"
        self.every, self.metrics, self.stop = every, metrics, stop
        self.step = 0  # the step of the last checkpoint

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        """Take the signals over from Lightning, which would go on at SIGTERM, or exit with 0."""
        self.stop.listen()
        self.stop.training = True

    def on_train_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after every `every`-th step, and when a signal came.

        Raises:
            SystemExit: a signal came to one of the ranks.
        """
        step, rest = divmod(batch_idx + 1, module.accumulate_grad_batches)
        if rest or batch_idx + 1 == trainer.num_training_batches:
            return
        stopping = bool(self.stop.signum)
        if trainer.world_size > 1:
            stopping = trainer.strategy.reduce_boolean_decision(stopping, all=False)
        if stopping or step % self.every == 0:
            self.save(trainer, step)
        if stopping:
            self.exit(trainer)

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        """Save the last state.

        Raises:
            SystemExit: a signal came meanwhile.
        """
        self.save(trainer, int(trainer.num_training_batches) // module.accumulate_grad_batches)
        self.stop.training = False
        if self.stop.signum:
            self.exit(trainer)

    def exit(self, trainer: L.Trainer) -> None:
        """End the process; the exit status of rank 0 stands for the run.

        Raises:
            SystemExit: always.
        """
        self.stop.training = False
        if not trainer.is_global_zero:
            raise SystemExit(0)  # another status would have Lightning kill rank 0
        raise Interrupted(self.stop.signum or 15)

    def on_exception(self, trainer: L.Trainer, module: Any, exception: BaseException) -> None:
        """Turn an exception into an error with advice.

        This must not wait, since Lightning kills the remaining processes within seconds.

        Raises:
            LostRankError: another process of the run died or could not be reached.
            RunError: a loss was not finite.
        """
        if isinstance(exception, NotFiniteError):
            self.keep_inputs(module, exception, trainer.global_rank)
        lost = isinstance(exception, torch.distributed.DistError) or "gloo" in str(exception)
        if trainer.world_size > 1 and lost:
            reason = str(exception).strip().splitlines()[0]
            raise LostRankError(
                f"a process of this run died or could not be reached; its last checkpoint is "
                f"{self.path}, which the same command goes on from ({reason})"
            ) from exception

    def keep_inputs(self, module: Any, error: NotFiniteError, rank: int) -> None:
        """Write what a step with a non-finite loss began with, and name the file in the error."""
        path = self.run / f"failed_step_rank{rank}.pt"
        weights = {name: weight.detach() for name, weight in module.trained_weights.items()}
        state = {"step": error.step, "losses": error.losses, "batch": error.batch}
        with atomic_path(path) as partial:
            torch.save({**state, "weights": weights}, partial)
        error.args = (
            f"{error}; the last checkpoint is of step {self.step}. Lower method.lr, or take "
            "trainer.precision=32-true, in another run_dir. The step's losses, batch and weights "
            "lie in a file to look at:\n"
            f"  python -c \"import torch; print(torch.load('{path}', weights_only=True))\"",
        )

    def on_save_checkpoint(
        self, trainer: L.Trainer, module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Add the step and the rows of metrics.csv to a checkpoint."""
        checkpoint |= {"step": self.step, "metrics": self.metrics.rows}

    def on_load_checkpoint(
        self, trainer: L.Trainer, module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the step and metrics.csv from a checkpoint.

        Raises:
            RunError: the checkpoint's weights do not fit the module.
        """
        check_fits(checkpoint, module)
        self.step = checkpoint["step"]
        self.metrics.restore(checkpoint["metrics"])

    def save(self, trainer: L.Trainer, step: int) -> None:
        """Save a checkpoint; every rank must call this, and rank 0 writes."""
        self.step = step
        trainer.save_checkpoint(self.path)

"""Declare the sections of a run's configuration, each a dataclass of options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from unlearn.utils.options import option

PRECISIONS = ("32-true", "bf16-mixed", "auto")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")  # Lightning's names of what draws here
PREDICTIONS = ("epsilon", "v_prediction")
PROMPT_SETS = "prompt_sets"  # the name of the evaluation that a run ends with


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options of the section `model`: the base model, and how it draws."""

    pretrained: str = option(help="emoji, a diffusers folder, a single file or a hub id")
    config: str | None = option(
        None,
        help="configuration of a single file: a folder or hub id; null: the published one",
    )
    variant: str | None = option(
        None, help="of a folder's or hub id's weights, such as fp16; null: those without one"
    )
    prediction_type: str | None = option(
        None, help="epsilon or v_prediction; null: what the model says", choices=PREDICTIONS
    )
    vae: str | None = option(
        None, help="another VAE: a folder, .safetensors file or hub id; null: the model's own"
    )
    vocabulary: str | None = option(
        None, help="the words that the model knows: emoji, or null, and then names are not checked"
    )
    guidance_scale: float = option(
        help="scale of classifier-free guidance", at_least=0, at_most=1000
    )
    recipes: list[str] = option(
        help="folders of conf/recipe; the first that has the method's recipe counts"
    )
    random_weights: bool = option(False, help="build the architecture with random weights")
    width: float = option(
        1.0, help="factor of the channels, with random weights", above=0, at_most=1
    )
    image_size: int | None = option(
        None,
        help="pixels, with random weights; null: the published model's",
        at_least=1,
        at_most=8192,
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Options of the section `evaluation` for the four prompt sets."""

    name: str = option(PROMPT_SETS, help="the evaluation's name", choices=(PROMPT_SETS,))
    images_per_prompt: int = option(help="images of each prompt", at_least=1, at_most=10_000)
    first_seed: int = option(
        help="seed of the first image, far from those of the training images",
        at_least=0,
        at_most=2**62,
    )
    num_inference_steps: int = option(help="steps of the sampler", at_least=1, at_most=1000)
    judge: str | None = option(
        None, help="a folder with a judge, clip, or none; null: the embedded model's, or clip"
    )
    clip: str = option(
        "openai/clip-vit-base-patch32", help="the CLIP of judge=clip: a hub id, a folder, or emoji"
    )


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options at the top of conf/train.yaml."""

    seed: int = option(help="seed of every random number of the run", at_least=0, at_most=2**32 - 1)
    steps: int = option(help="training steps, with the warm-up", at_least=0, at_most=10**8)
    batch_size: int = option(
        help="samples a device; the relearn half is as large again", at_least=1, at_most=10**6
    )
    gradient_checkpointing: bool = option(
        False, help="compute activations twice: less memory, more time"
    )
    sampling_batch_size: int | None = option(
        None,
        help="images drawn at a time; null: 32 up to 512 x 512 pixels, fewer of larger ones",
        at_least=1,
        at_most=10**5,
    )
    checkpoint_every: int = option(help="steps between checkpoints", at_least=1, at_most=10**8)
    keep_every: int = option(
        help="steps between weights kept in steps/; 0: the last alone", at_least=0, at_most=10**8
    )
    log_images_every: int | None = option(
        None,
        help="steps between pictures of what the model draws; 0: none; null: 250 with a logger "
        "that shows images, else none",
        at_least=0,
        at_most=10**8,
    )
    log_group: str = option(help="name of the group of runs that a logger shows together")
    run_dir: str = option(help="the folder of the run")
    resume: bool = option(
        True, help="go on where an earlier call stopped; false: delete what it wrote"
    )
    dry_run: bool = option(False, help="print the plan, and stop")
    after: str | None = option(
        None, help="a finished run of the same base model, whose weights this one starts from"
    )


@dataclass(frozen=True, kw_only=True)
class TrainerOptions:
    """Options of the section `trainer`: the devices, the precision and the log's interval.

    The section also takes further options of Lightning's Trainer.
    """

    accelerator: str = option(
        help="the kind of device, as Lightning names it", choices=ACCELERATORS
    )
    devices: Any = option(help="number of devices, or a list of their indices")
    num_nodes: int = option(help="number of machines", at_least=1, at_most=10**5)
    strategy: str = option(help="auto, ddp or ddp_spawn, or another of Lightning's")
    precision: str = option(
        help="32-true, bf16-mixed, or auto: bf16 where the machine has it natively"
    )
    log_every_n_steps: int = option(
        50, help="steps between rows of metrics.csv", at_least=1, at_most=10**8
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """The keys at the top of conf/evaluate.yaml, for `unlearn evaluate`."""

    out_dir: str | None = option(
        None,
        help="folder of the results of weights from elsewhere; null: runs/evaluate-FOLDER-STEM",
    )
    sampling_batch_size: int | None = option(
        None,
        help="images of the four prompt sets drawn at a time; null: as in a run",
        at_least=1,
        at_most=10**5,
    )


@dataclass(frozen=True, kw_only=True)
class SweeperOptions:
    """The section `hydra.sweeper`, for `unlearn train -m`."""

    trials: int = option(30, help="trials of a search", at_least=1, at_most=10**5)
    seed: int = option(0, help="seed of a search", at_least=0, at_most=2**32 - 1)
    max_batch_size: int | None = option(
        None,
        help="jobs that the launcher gets at a time; null: all, in a search one",
        at_least=1,
        at_most=10**5,
    )
    params: Any = option(None, help="overrides, by key, for keys that the command line lacks")
    jobs: str | None = option(
        None, help="a YAML file, a list of jobs that are lists of overrides; null: one job"
    )


@dataclass(frozen=True, kw_only=True)
class PoolOptions:
    """The section `hydra.launcher` of `hydra/launcher=pool`."""

    workers: int = option(2, help="jobs at the same time on this machine", at_least=1, at_most=1000)

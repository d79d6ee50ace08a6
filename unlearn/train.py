"""`unlearn train`: build, fit, export, evaluate."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from omegaconf import DictConfig, OmegaConf

from unlearn.backbone import device_of, load_pipeline
from unlearn.config import concept_of, plain
from unlearn.data import PairDataModule, make_training_data
from unlearn.evaluation.evaluate import evaluate, load_judge
from unlearn.export import save_unlearned
from unlearn.methods import build_method


def train(config: DictConfig) -> Path:
    """Run one unlearning job and return its run directory.

    Raises:
        ValueError: the concept, the model, the judge, or an option of the run is not valid.
    """
    concept = concept_of(config)
    if config.steps <= config.method.warm_up:
        raise ValueError(
            f"steps={config.steps}: the first method.warm_up={config.method.warm_up} steps train "
            "the discriminator alone; more steps than those are needed"
        )
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    L.seed_everything(config.seed, verbose=False)
    pipe = load_pipeline(config.model.pretrained)
    load_judge(config)  # refused now if it is missing, not after training
    schedule = pipe.scheduler
    method = build_method(pipe, **plain(config.method))

    run = Path(config.run_dir)
    run.mkdir(parents=True, exist_ok=True)
    resolved = OmegaConf.to_yaml(config, resolve=True)
    (run / "config.yaml").write_text(resolved, encoding="utf-8")
    data = make_training_data(
        pipe.to(device_of(config.trainer.accelerator)),
        concept,
        seed=config.seed,
        guidance=config.model.guidance,
        **config.data,
    )
    module = PairDataModule(
        data, config.steps, config.batch_size, config.seed, schedule.config.num_train_timesteps
    )
    trainer = build_trainer(config, run)
    trainer.fit(method, module)
    if not trainer.is_global_zero:
        return run
    weights = {f"{name}.weight": layer.weight for name, layer in method.layers_by_name.items()}
    metadata = {
        "base": config.model.pretrained,
        "concept": concept.name,
        "method": config.method.name,
        "config_sha256": hashlib.sha256(resolved.encode()).hexdigest(),
    }
    save_unlearned(weights, run / "unlearned.safetensors", metadata)
    (run / "hparams.yaml").unlink(missing_ok=True)  # Lightning's copy of config.yaml
    evaluate(config, run)
    return run


def build_trainer(config: DictConfig, run: Path) -> L.Trainer:
    """A trainer of one epoch that writes its metrics and its checkpoint to the run directory."""
    return L.Trainer(
        **plain(config.trainer),
        max_epochs=1,
        logger=CSVLogger(run, name="", version=""),
        callbacks=[
            ModelCheckpoint(run / "checkpoints", filename="last", enable_version_counter=False),
            TQDMProgressBar(refresh_rate=5),
        ],
        enable_model_summary=False,
        use_distributed_sampler=False,
    )

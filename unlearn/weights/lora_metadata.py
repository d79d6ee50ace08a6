"""Read what a LoRA file says about itself: its scales, and the model that it was trained on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

# of PEFT's configuration: options under which a layer's change is not scale · up · down
UNSUPPORTED_OPTIONS = (
    "use_dora", "use_qalora", "use_bdlora", "fan_in_fan_out", "layer_replication", "kasa_config",
    "velora_config", "arrow_config", "monteclora_config", "alora_invocation_tokens",
)  # fmt: skip
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")  # leave the base as it is
PATTERN = re.compile(r"\^?[\w.]+")  # a layer's name, or its end
# how sd-scripts and the Stability metadata name base models, by the class of the pipeline
BASES = {
    "StableDiffusionPipeline": ("sd_v1", "sd_v2", "stable-diffusion-v"),
    "StableDiffusionXLPipeline": ("sdxl", "stable-diffusion-xl"),
    "StableDiffusion3Pipeline": ("sd3", "stable-diffusion-3"),
}
BASE_KEYS = ("ss_base_model_version", "modelspec.architecture")
PREDICTIONS = {  # by key and value, in lower case: what the base model predicts
    ("ss_v_parameterization", "true"): "v_prediction",
    ("modelspec.prediction_type", "v"): "v_prediction",
    ("modelspec.prediction_type", "v_prediction"): "v_prediction",
    ("modelspec.prediction_type", "epsilon"): "epsilon",
}


class PartConfig(TypedDict, total=False):
    """The keys of PEFT's configuration that scale the factors of one part of a pipeline."""

    lora_alpha: float | None
    alpha_pattern: dict[str, float] | None
    use_rslora: bool | None
    init_lora_weights: bool | str | None


class Scales:
    """The scale of each layer's factors in one part of a pipeline.

    Args:
        config: the part's configuration.

    Raises:
        ValueError: a key of `alpha_pattern` is a regular expression.
    """

    def __init__(self, config: PartConfig) -> None:
        self.alpha = config.get("lora_alpha")
        self.power = 0.5 if config.get("use_rslora") else 1.0  # of the rank, beneath alpha
        self.patterns: dict[str, tuple[int, float]] = {}
        for place, (pattern, alpha) in enumerate((config.get("alpha_pattern") or {}).items()):
            if not PATTERN.fullmatch(pattern):
                raise ValueError(
                    f"alpha_pattern: {pattern[:80]!r} is no layer's name; a regular expression "
                    "of a file is not run"
                )
            # the names are those of `named_weights`
            self.patterns.setdefault(pattern.replace("text_model.", ""), (place, alpha))

    def scale(self, layer: str, rank: int, stored: float | None) -> float:
        """Return a layer's scale, alpha / rank.

        The alpha is the first of these: the layer's own; that of the first pattern that is the
        layer's name or its end ("^" begins a whole name); that of the part; the rank.

        Args:
            layer: the layer's name in its part of the pipeline.
            rank: the rank of its factors.
            stored: the layer's own alpha, if there is one.

        Source: PEFT's `get_pattern_key`.
        """
        words = layer.split(".")
        ends = [f"^{layer}", *(".".join(words[start:]) for start in range(len(words)))]
        matching = [self.patterns[end] for end in ends if end in self.patterns]
        if stored is None:
            stored = min(matching)[1] if matching else self.alpha
        return 1.0 if stored is None else stored / rank**self.power


def read_scales(metadata: Mapping[str, str], parts: list[str], path: Path) -> dict[str, Scales]:
    """Return the scales that diffusers stored beside the factors, by part of the pipeline.

    Raises:
        ValueError: the metadata is not diffusers', or the change of a layer is not
            scale · up · down.
    """
    try:
        text = metadata.get("lora_adapter_metadata", "{}")
        stored = TypeAdapter(dict[str, Any]).validate_json(text)
        return {part: read_part(stored, part) for part in parts}
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        reason = f"{key}={first['input']!r:.80}: {first['msg']}" if key else first["msg"]
        raise ValueError(f"{path}: lora_adapter_metadata: {reason}") from error
    except ValueError as error:
        raise ValueError(f"{path}: lora_adapter_metadata: {error}") from error


def read_part(stored: Mapping[str, Any], part: str) -> Scales:
    """Return the scales of one part of the pipeline.

    Raises:
        ValueError: a value has the wrong type, or an option is not supported.
    """
    options = {
        key.removeprefix(f"{part}."): value
        for key, value in stored.items()
        if key.startswith(f"{part}.")
    }
    for key in UNSUPPORTED_OPTIONS:
        if options.get(key):
            raise ValueError(f"a LoRA with {key} is not supported")
    config = TypeAdapter(PartConfig).validate_python(options)
    start = config.get("init_lora_weights")
    if start not in PLAIN_STARTS:
        raise ValueError(
            f"init_lora_weights={start!r} changed the base model too; PEFT's save_pretrained "
            "converts it by path_initial_model_for_weight_conversion"
        )
    return Scales(config)


def check_trained_on(pipe: DiffusionPipeline, metadata: Mapping[str, str], path: Path) -> None:
    """Refuse a LoRA whose metadata names a base model of another kind than the pipeline.

    Shapes alone cannot tell: those of Stable Diffusion 2 are the same for both predictions.

    Raises:
        ValueError: the base model is another one; the message names the key and its value.
    """
    kind = type(pipe).__name__
    for key in BASE_KEYS:
        named = metadata.get(key, "")
        others = [start for other, starts in BASES.items() if other != kind for start in starts]
        if named.startswith(tuple(others)):
            raise ValueError(f"{path}: {key}={named!r:.80}, this pipeline is a {kind}")
    own = pipe.scheduler.config.get("prediction_type", "flow")
    for key, value in metadata.items():
        trained = PREDICTIONS.get((key, value.lower()))
        if trained is not None and trained != own:
            raise ValueError(
                f"{path}: {key}={value!r}, the base model's prediction_type is {own!r}; "
                "model.prediction_type changes it"
            )

"""Published evaluation protocols: what a file of conf/evaluation says, checked, and its rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from omegaconf import MISSING

from unlearn.config.sections import parse_section
from unlearn.evaluation.nudity import PRESETS
from unlearn.evaluation.prompt_files import (
    FORMATS,
    Prompt,
    local_file,
    published_file,
    read_prompts,
)
from unlearn.generation.sampling import SCHEDULERS, SamplingRequest
from unlearn.utils.checks import check_choice

NOISE = ("per_image", "per_call")
METRICS = (
    "clip_score",
    "clip_error_rate",
    "clip_accuracy",
    "kid",
    "fid",
    "fid_reference",
    "image_similarity",
    "nudity",
)


@dataclass
class DrawnConcept:
    """How a protocol draws one of its concepts.

    Attributes:
        file: its prompts, a path in the repository; null: the protocol's `file`.
        word: fills templates, and captions; null: the concept's name.
        replaces: the word of the file's prompts in whose place `word` is put.
        caption: the text that CLIP compares images with; null: the protocol's `caption`.
        anchor: the word that CLIP may choose instead, for `clip_accuracy`.
        images_per_prompt: null: the protocol's.
        metrics: null: the protocol's.
        erased: it is drawn only for models that forgot the concept of this name; null: for all.
    """

    file: Optional[str] = None  # noqa: UP045 - OmegaConf reads these annotations
    word: Optional[str] = None  # noqa: UP045
    replaces: Optional[str] = None  # noqa: UP045
    caption: Optional[str] = None  # noqa: UP045
    anchor: Optional[str] = None  # noqa: UP045
    images_per_prompt: Optional[int] = None  # noqa: UP045
    metrics: Optional[list[str]] = None  # noqa: UP045
    erased: Optional[str] = None  # noqa: UP045


@dataclass
class Calibration:
    """Values that a protocol was published with for a base model, to check one's own against.

    Attributes:
        base: the `model.pretrained` that they are of.
        settings: what else they are of: keys of the section, and their values.
        tolerance: by metric.
        values: by concept and metric.
    """

    base: str = MISSING
    settings: dict[str, str] = field(default_factory=dict)
    tolerance: dict[str, float] = field(default_factory=dict)
    values: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass
class Protocol:
    """The section `evaluation` of a published protocol; the files of conf/evaluation say more.

    Attributes:
        name: names the result.
        lite: a small variant, which is not the published protocol.
        source: where the protocol was published.
        differences: what here differs from there; printed with every result.
        repository, commit: of the prompt files, on GitHub.
        sha256: of each file; null: files of one's own, in `prompts_file`.
        format: of the files, a key of `FORMATS`.
        file: what the concepts read.
        prompts_file: where the files lie: a file, or a folder; null: they are fetched.
        limit: prompts a concept, evenly spaced; null: all.
        images_per_prompt: how many.
        noise: "per_image" (a generator each) or "per_call" (one draws all images of a prompt, and
            is seeded anew for each prompt).
        seed: where the file gives none. With a generator an image, the following images count on.
        size: pixels, where the file gives none; null: the model's own.
        scheduler, num_inference_steps, eta, guidance_scale, negative_prompt: how images are drawn.
        batch_size: images a call, where noise is `per_image`.
        concepts: by name.
        caption: the text that CLIP compares images with, of {word} and {prompt}.
        metrics: of `METRICS`.
        clip: see `ClipScorer.load`.
        inception: weights for KID and FID; null: they are on CLIP's features.
        nudity: what the detector's findings count as, a key of `nudity.PRESETS`.
        reference: a folder of images for `fid_reference`.
        calibration: of base models.
    """

    name: str = MISSING
    lite: bool = False
    source: str = MISSING
    differences: list[str] = field(default_factory=list)
    repository: str = MISSING
    commit: str = MISSING
    sha256: Optional[dict[str, str]] = None  # noqa: UP045
    format: str = MISSING
    file: Optional[str] = None  # noqa: UP045
    prompts_file: Optional[str] = None  # noqa: UP045
    limit: Optional[int] = None  # noqa: UP045
    images_per_prompt: int = 1
    noise: str = MISSING
    seed: int = MISSING
    size: Optional[int] = None  # noqa: UP045
    scheduler: str = MISSING
    num_inference_steps: int = MISSING
    eta: float = 0.0
    guidance_scale: float = MISSING
    negative_prompt: str = ""
    batch_size: int = 8
    concepts: dict[str, DrawnConcept] = MISSING
    caption: str = "{word}"
    metrics: list[str] = MISSING
    clip: str = MISSING
    inception: Optional[str] = None  # noqa: UP045
    nudity: Optional[str] = None  # noqa: UP045
    reference: Optional[str] = None  # noqa: UP045
    calibration: Optional[Calibration] = None  # noqa: UP045

    @property
    def sampler(self) -> dict[str, Any]:
        """Keyword arguments of `draw`."""
        keys = ("scheduler", "eta", "negative_prompt", "batch_size")
        return {"steps": self.num_inference_steps, **{key: getattr(self, key) for key in keys}}

    def file_of(self, concept: str) -> str:
        """The prompt file of a concept."""
        return self.concepts[concept].file or self.file or ""

    def metrics_of(self, concept: str) -> list[str]:
        """The metrics of a concept."""
        own = self.concepts[concept].metrics
        return self.metrics if own is None else own

    def caption_of(self, concept: str, prompt: str) -> str:
        """The text that CLIP compares an image of the prompt with."""
        entry = self.concepts[concept]
        return (entry.caption or self.caption).format(word=entry.word or concept, prompt=prompt)


def read_protocol(config: Any, erased: str) -> Protocol:
    """The protocol of a config section, with the concepts to draw with a model without `erased`.

    Raises:
        ValueError: a value is missing, of the wrong type, or out of its range, or the protocol has
            nothing for the erased concept.
    """
    protocol = parse_section(config, "evaluation", Protocol)
    check_choice("evaluation.format", protocol.format, list(FORMATS))
    check_choice("evaluation.noise", protocol.noise, list(NOISE))
    check_choice("evaluation.scheduler", protocol.scheduler, list(SCHEDULERS))
    for key in ("images_per_prompt", "num_inference_steps", "batch_size", "limit", "size"):
        value = getattr(protocol, key)
        if value is not None and value < 1:
            raise ValueError(f"evaluation.{key}={value}: at least 1 is needed")
    if protocol.size and protocol.size % 8:
        raise ValueError(f"evaluation.size={protocol.size}: a multiple of 8 is needed")
    if protocol.eta and protocol.scheduler != "ddim":
        raise ValueError(f"evaluation.eta={protocol.eta}: evaluation.scheduler=ddim alone has one")
    if protocol.reference is not None and not Path(protocol.reference).is_dir():
        raise ValueError(f"evaluation.reference={protocol.reference!r}: there is no such folder")
    if protocol.nudity is not None:
        check_choice("evaluation.nudity", protocol.nudity, list(PRESETS))
    if protocol.sha256 is None and protocol.prompts_file is None:
        raise ValueError(
            "evaluation.sha256=null: takes files of one's own, so evaluation.prompts_file=PATH too"
        )
    names = (None, *erased.split("+"))  # of several concepts
    chosen = {k: s for k, s in protocol.concepts.items() if s.erased in names}
    if not chosen:
        known = sorted({s.erased for s in protocol.concepts.values() if s.erased})
        raise ValueError(
            f"evaluation={protocol.name}: has prompts for models that forgot one of {known}, "
            f"not for concept.name={erased!r}"
        )
    protocol.concepts = chosen
    for name in protocol.concepts:
        check_drawn(protocol, name)
    return protocol


def check_drawn(protocol: Protocol, name: str) -> None:
    """Refuse a concept that cannot be drawn or measured.

    Raises:
        ValueError: names the key, the value and what is allowed.
    """
    concept, key = protocol.concepts[name], f"evaluation.concepts.{name}"
    file = protocol.file_of(name)
    if not file:
        raise ValueError(f"{key}.file=null: it or evaluation.file must name a prompt file")
    if protocol.sha256 is not None and file not in protocol.sha256:
        raise ValueError(f"evaluation.sha256: has no hash for {file!r}, the file of {key}")
    if concept.images_per_prompt is not None and concept.images_per_prompt < 1:
        raise ValueError(
            f"{key}.images_per_prompt={concept.images_per_prompt}: at least 1 is needed"
        )
    try:
        protocol.caption_of(name, "")
    except (KeyError, IndexError, ValueError) as error:
        caption = concept.caption or protocol.caption
        raise ValueError(
            f"evaluation.caption={caption!r}: may hold {{word}} and {{prompt}} only"
        ) from error
    for metric in protocol.metrics_of(name):
        check_choice("evaluation.metrics", metric, METRICS)
        if metric == "clip_accuracy" and concept.anchor is None:
            raise ValueError(f"{key}.anchor=null: clip_accuracy needs one")
        if metric == "nudity" and protocol.nudity is None:
            raise ValueError("evaluation.nudity=null: the metric nudity needs a preset")


def rows_of(protocol: Protocol) -> dict[str, list[SamplingRequest]]:
    """What to draw for each concept, in the order of its prompt file.

    Raises:
        ValueError: a file cannot be had, is not the published one, or cannot be read.
    """
    several = sorted({protocol.file_of(name) for name in protocol.concepts})
    place = protocol.prompts_file
    if place is not None and Path(place).is_file() and len(several) > 1:
        raise ValueError(
            f"evaluation.prompts_file={place!r}: is one file; a folder that holds these is needed: "
            f"{[Path(file).name for file in several]}"
        )
    files = {f: read_prompts(read_file(protocol, f), protocol.format, f) for f in several}
    rows = {}
    for name in protocol.concepts:
        prompts = files[protocol.file_of(name)]
        count = min(len(prompts), protocol.limit or len(prompts))
        spaced = [prompts[i * len(prompts) // count] for i in range(count)]
        rows[name] = shots_of(protocol, name, spaced)
    return rows


def read_file(protocol: Protocol, file: str) -> bytes:
    """One prompt file of the protocol, checked."""
    expected = protocol.sha256[file] if protocol.sha256 else None
    if protocol.prompts_file is not None:
        return local_file(protocol.prompts_file, file, expected)
    assert expected, "read_protocol refuses what would be fetched unchecked"
    return published_file(protocol.repository, protocol.commit, file, expected)


def shots_of(protocol: Protocol, name: str, prompts: list[Prompt]) -> list[SamplingRequest]:
    """The shots of a concept: one a prompt, or one an image, as the noise policy says."""
    concept = protocol.concepts[name]
    images, word = concept.images_per_prompt or protocol.images_per_prompt, concept.word or name
    square = (protocol.size, protocol.size) if protocol.size else None
    shots = []
    for number, prompt in enumerate(prompts):
        text = prompt.text.replace("{}", word) if protocol.format == "templates" else prompt.text
        text = text.replace(concept.replaces, word) if concept.replaces else text
        guidance_scale = (
            protocol.guidance_scale if prompt.guidance_scale is None else prompt.guidance_scale
        )
        # the VAE's factor, as the repositories round
        size = (prompt.size[0] // 8 * 8, prompt.size[1] // 8 * 8) if prompt.size else square
        if protocol.noise == "per_call":
            seed = protocol.seed if prompt.seed is None else prompt.seed
            shots.append(SamplingRequest(text, seed, guidance_scale, size, images))
        else:
            first = protocol.seed + number * images if prompt.seed is None else prompt.seed
            shots += [SamplingRequest(text, first + i, guidance_scale, size) for i in range(images)]
    return shots

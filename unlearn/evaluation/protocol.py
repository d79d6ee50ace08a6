"""Check the section `evaluation` of a published protocol, and list the images that it draws."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from string import Formatter
from typing import Any

from unlearn.config.sections import parse_section
from unlearn.evaluation.nudity import PRESETS
from unlearn.evaluation.prompt_files import (
    FORMATS,
    Prompt,
    local_file,
    own_path,
    published_file,
    read_prompts,
)
from unlearn.generation.sampling import SCHEDULERS, Sampler, SamplingRequest
from unlearn.utils.checks import check_choice
from unlearn.utils.options import check_options, option

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


@dataclass(kw_only=True)  # not frozen: OmegaConf fills what lies inside a section
class ProtocolConcept:
    """Options of one concept that a protocol draws: an entry of `evaluation.concepts`."""

    file: str | None = option(
        None, help="its prompts, a path in the repository; null: the protocol's file"
    )
    word: str | None = option(
        None, help="the word for templates and captions; null: the concept's name"
    )
    replaces: str | None = option(
        None, help="the word of the file's prompts in whose place `word` is put"
    )
    caption: str | None = option(
        None, help="the text that CLIP compares images with; null: the protocol's caption"
    )
    anchor: str | None = option(
        None, help="the word that CLIP may choose instead, for clip_accuracy"
    )
    images_per_prompt: int | None = option(
        None, help="images of each prompt; null: the protocol's", at_least=1, at_most=10_000
    )
    metrics: list[str] | None = option(None, help="metrics to compute; null: the protocol's")
    erased: str | None = option(
        None, help="drawn only for models that forgot the concept of this name; null: for all"
    )


@dataclass(kw_only=True)  # not frozen: OmegaConf fills what lies inside a section
class Calibration:
    """Options of `evaluation.calibration`: the published values of a protocol for a base model."""

    base: str = option(help="model.pretrained of the base model")
    settings: dict[str, str] = option({}, help="other keys of the section that the values hold for")
    tolerance: dict[str, float] = option({}, help="the allowed difference, by metric")
    values: dict[str, dict[str, float]] = option(
        {}, help="the published values, by concept and metric"
    )


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Options of the section `evaluation` of a published protocol."""

    name: str = option(help="the protocol's name, which names the result")
    lite: bool = option(False, help="a small variant, which is not the published protocol")
    source: str = option(help="where the protocol was published")
    differences: list[str] = option(
        [], help="what differs from the publication; printed with every result"
    )
    repository: str = option(help="the GitHub repository of the prompt files")
    commit: str = option(help="the commit of the prompt files")
    sha256: dict[str, str] | None = option(
        None, help="hash of each prompt file; null: prompts_file holds files of your own"
    )
    format: str = option(help="format of the prompt files", choices=tuple(FORMATS))
    file: str | None = option(
        None, help="the prompt file of every concept without a file of its own"
    )
    prompts_file: str | None = option(
        None, help="a prompt file, or a folder of them; null: the files are fetched"
    )
    limit: int | None = option(
        None, help="prompts a concept, evenly spaced; null: all", at_least=1, at_most=10**9
    )
    images_per_prompt: int = option(1, help="images of each prompt", at_least=1, at_most=10_000)
    noise: str = option(
        help="per_image: each image has a generator of its own; per_call: one generator draws all "
        "images of a prompt, and is seeded anew for each prompt",
        choices=NOISE,
    )
    seed: int = option(
        help="seed of the first image where the file gives none; with noise=per_image the next "
        "ones count up",
        at_most=2**32 - 1,
        at_least=0,
    )
    size: int | None = option(
        None,
        help="pixels of an image where the file gives none; null: the model's own",
        at_least=1,
        at_most=10**5,
    )
    scheduler: str = option(help="scheduler of the sampler", choices=tuple(SCHEDULERS))
    num_inference_steps: int = option(help="steps of the sampler", at_least=1, at_most=1000)
    eta: float = option(0.0, help="η of DDIM", at_least=0, at_most=1)
    guidance_scale: float = option(
        help="scale of classifier-free guidance", at_most=1000, at_least=0
    )
    negative_prompt: str = option("", help="negative prompt of every image")
    batch_size: int = option(
        8, help="images drawn at a time, with noise=per_image", at_least=1, at_most=10**5
    )
    concepts: dict[str, ProtocolConcept] = option(help="the concepts to draw, by name")
    caption: str = option(
        "{word}", help="the text that CLIP compares images with, made of {word} and {prompt}"
    )
    metrics: list[str] = option(help=f"metrics to compute, of {', '.join(METRICS)}")
    clip: str = option(help="the CLIP of the metrics: a hub id, a folder, or emoji")
    inception: str | None = option(
        None, help="Inception weights for KID and FID; null: CLIP's features serve"
    )
    nudity: str | None = option(
        None, help="which of the detector's findings count", choices=tuple(PRESETS)
    )
    reference: str | None = option(None, help="a folder of images for fid_reference")
    calibration: Calibration | None = option(
        None, help="published values of a base model, to compare with"
    )

    @property
    def sampler(self) -> Sampler:
        """The sampler that draws the protocol's images."""
        return Sampler(
            self.num_inference_steps,
            self.guidance_scale,
            batch_size=self.batch_size,
            scheduler=self.scheduler,
            eta=self.eta,
            negative_prompt=self.negative_prompt,
        )

    def file_of(self, concept: str) -> str:
        """Return the name of a concept's prompt file; "" where there is none."""
        return self.concepts[concept].file or self.file or ""

    def metrics_of(self, concept: str) -> list[str]:
        """Return the metrics of a concept."""
        own = self.concepts[concept].metrics
        return self.metrics if own is None else own

    def caption_of(self, concept: str, prompt: str) -> str:
        """Return the text that CLIP compares an image of the prompt with."""
        entry = self.concepts[concept]
        return (entry.caption or self.caption).format(word=entry.word or concept, prompt=prompt)


def read_protocol(config: Any, erased: str) -> Protocol:
    """Return the protocol of a config section, with the concepts to draw for one erased concept.

    Args:
        config: the section `evaluation`.
        erased: the name of the concept that the model forgot; "a+b" of several concepts.

    Raises:
        ValueError: a value is missing, of the wrong type or out of its range, or the protocol has
            nothing for the erased concept.
    """
    protocol = parse_section(config, "evaluation", Protocol)
    if protocol.size and protocol.size % 8:
        raise ValueError(f"evaluation.size={protocol.size}: a multiple of 8 is needed")
    if protocol.eta and protocol.scheduler != "ddim":
        raise ValueError(f"evaluation.eta={protocol.eta}: evaluation.scheduler=ddim alone has one")
    if protocol.reference is not None and not Path(protocol.reference).is_dir():
        raise ValueError(f"evaluation.reference={protocol.reference!r}: there is no such folder")
    if protocol.sha256 is None and protocol.prompts_file is None:
        raise ValueError(
            "evaluation.sha256=null: takes files of one's own, so evaluation.prompts_file=PATH too"
        )
    names = (None, *erased.split("+"))  # "a+b" names several
    chosen = {k: s for k, s in protocol.concepts.items() if s.erased in names}
    if not chosen:
        known = sorted({s.erased for s in protocol.concepts.values() if s.erased})
        raise ValueError(
            f"evaluation={protocol.name}: has prompts for models that forgot one of {known}, "
            f"not for concept.name={erased!r}"
        )
    protocol = replace(protocol, concepts=chosen)
    for name, concept in protocol.concepts.items():
        check_options(concept, f"evaluation.concepts.{name}")
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
    caption = concept.caption or protocol.caption
    try:
        slots = [slot[1:] for slot in Formatter().parse(caption) if slot[1] is not None]
        plain = all(name in ("word", "prompt") and not (spec or how) for name, spec, how in slots)
    except ValueError:  # a brace without its other half
        plain = False
    if not plain:
        raise ValueError(f"evaluation.caption={caption!r}: may hold {{word}} and {{prompt}} only")
    for metric in protocol.metrics_of(name):
        check_choice("evaluation.metrics", metric, METRICS)
        if metric == "clip_accuracy" and concept.anchor is None:
            raise ValueError(f"{key}.anchor=null: clip_accuracy needs one")
        if metric == "nudity" and protocol.nudity is None:
            raise ValueError("evaluation.nudity=null: the metric nudity needs a preset")


def protocol_requests(protocol: Protocol) -> dict[str, list[SamplingRequest]]:
    """Return the images to draw for each concept, in the order of its prompt file.

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
    files = {
        f: read_prompts(
            read_file(protocol, f), protocol.format, f if place is None else str(own_path(place, f))
        )
        for f in several
    }
    rows = {}
    for name in protocol.concepts:
        prompts = files[protocol.file_of(name)]
        count = min(len(prompts), protocol.limit or len(prompts))
        spaced = [prompts[i * len(prompts) // count] for i in range(count)]
        rows[name] = concept_requests(protocol, name, spaced)
    return rows


def read_file(protocol: Protocol, file: str) -> bytes:
    """Return the content of one of the protocol's prompt files, its hash checked."""
    expected = protocol.sha256[file] if protocol.sha256 else None
    if protocol.prompts_file is not None:
        return local_file(protocol.prompts_file, file, expected)
    assert expected, "read_protocol refuses what would be fetched unchecked"
    return published_file(protocol.repository, protocol.commit, file, expected)


def concept_requests(protocol: Protocol, name: str, prompts: list[Prompt]) -> list[SamplingRequest]:
    """Return the sampling requests of a concept's prompts, as `noise` says.

    With "per_call" a prompt has one request for all its images. With "per_image" every image has a
    request of its own.
    """
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
        # down to multiples of the VAE's factor 8, as the repositories round
        size = (prompt.size[0] // 8 * 8, prompt.size[1] // 8 * 8) if prompt.size else square
        if protocol.noise == "per_call":
            seed = protocol.seed if prompt.seed is None else prompt.seed
            shots.append(SamplingRequest(text, seed, guidance_scale, size, images))
        else:
            first = protocol.seed + number * images if prompt.seed is None else prompt.seed
            shots += [SamplingRequest(text, first + i, guidance_scale, size) for i in range(images)]
    return shots

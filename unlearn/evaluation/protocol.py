"""Published evaluation protocols: what a file of conf/evaluation says, checked, and its rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unlearn.config.sections import parse_section
from unlearn.evaluation.nudity import PRESETS
from unlearn.evaluation.prompt_files import (
    FORMATS,
    Prompt,
    local_file,
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
class DrawnConcept:
    """How a protocol draws one of its concepts: an entry of `evaluation.concepts`."""

    file: str | None = option(
        None, help="its prompts, a path in the repository; null: the protocol's file"
    )
    word: str | None = option(None, help="fills templates, and captions; null: the concept's name")
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
    metrics: list[str] | None = option(None, help="null: the protocol's")
    erased: str | None = option(
        None, help="drawn only for models that forgot the concept of this name; null: for all"
    )


@dataclass(kw_only=True)  # not frozen: OmegaConf fills what lies inside a section
class Calibration:
    """Values that a protocol was published with for a base model: `evaluation.calibration`."""

    base: str = option(help="the model.pretrained that they are of")
    settings: dict[str, str] = option({}, help="what else they are of: keys of the section")
    tolerance: dict[str, float] = option({}, help="by metric")
    values: dict[str, dict[str, float]] = option({}, help="by concept and metric")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The section `evaluation` of a published protocol."""

    name: str = option(help="names the result")
    lite: bool = option(False, help="a small variant, which is not the published protocol")
    source: str = option(help="where the protocol was published")
    differences: list[str] = option(
        [], help="what differs from the publication; printed with every result"
    )
    repository: str = option(help="of the prompt files, on GitHub")
    commit: str = option(help="of the prompt files")
    sha256: dict[str, str] | None = option(
        None, help="of each file; null: files of one's own, in prompts_file"
    )
    format: str = option(help="of the files", choices=tuple(FORMATS))
    file: str | None = option(None, help="what the concepts read")
    prompts_file: str | None = option(
        None, help="where the files lie: a file, or a folder; null: they are fetched"
    )
    limit: int | None = option(
        None, help="prompts a concept, evenly spaced; null: all", at_least=1, at_most=10**9
    )
    images_per_prompt: int = option(1, help="images of each prompt", at_least=1, at_most=10_000)
    noise: str = option(
        help="per_image: a generator each; per_call: one draws all images of a prompt, and is "
        "seeded anew for each prompt",
        choices=NOISE,
    )
    seed: int = option(
        help="where the file gives none; with a generator an image, the next images count on"
    )
    size: int | None = option(
        None, help="pixels, where the file gives none; null: the model's own", at_least=1,
        at_most=10**5,
    )  # fmt: skip
    scheduler: str = option(help="that draws", choices=tuple(SCHEDULERS))
    num_inference_steps: int = option(help="steps of the sampler", at_least=1, at_most=10_000)
    eta: float = option(0.0, help="of DDIM", at_least=0, at_most=1)
    guidance_scale: float = option(help="of classifier-free guidance")
    negative_prompt: str = option("", help="of every image")
    batch_size: int = option(
        8, help="images a call, where noise is per_image", at_least=1, at_most=10**5
    )
    concepts: dict[str, DrawnConcept] = option(help="what is drawn, by name")
    caption: str = option(
        "{word}", help="the text that CLIP compares images with, of {word} and {prompt}"
    )
    metrics: list[str] = option(help=f"of {', '.join(METRICS)}")
    clip: str = option(help="a hub id, a folder, or emoji")
    inception: str | None = option(
        None, help="weights for KID and FID; null: they are on CLIP's features"
    )
    nudity: str | None = option(
        None, help="what the detector's findings count as", choices=tuple(PRESETS)
    )
    reference: str | None = option(None, help="a folder of images for fid_reference")
    calibration: Calibration | None = option(None, help="of base models")

    @property
    def sampler(self) -> Sampler:
        """How the protocol draws images."""
        return Sampler(
            self.num_inference_steps,
            self.guidance_scale,
            batch_size=self.batch_size,
            scheduler=self.scheduler,
            eta=self.eta,
            negative_prompt=self.negative_prompt,
        )

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
    names = (None, *erased.split("+"))  # of several concepts
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

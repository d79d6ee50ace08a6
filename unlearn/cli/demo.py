"""Run `unlearn demo`: a page that draws a prompt with the base and the unlearned model."""

from __future__ import annotations

import copy
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from unlearn.concepts.concept import Concept
from unlearn.concepts.prompts import SET_NAMES, evaluation_prompts
from unlearn.concepts.vocabulary import Vocabulary, load_vocabulary
from unlearn.config.overrides import parse_options, split_arguments
from unlearn.config.run_config import ModelConfig
from unlearn.config.saved import load_run_config
from unlearn.evaluation.clip_judge import ClipJudge
from unlearn.evaluation.evaluate import load_judge
from unlearn.evaluation.judge import Judge, Verdict
from unlearn.generation.sampling import generate
from unlearn.models.pipeline import denoiser_name, get_denoiser
from unlearn.models.text_states import check_prompt_lengths, check_words_known
from unlearn.utils.options import option
from unlearn.weights.delta import load_unlearned

if TYPE_CHECKING:
    from gradio import Blocks

USAGE = "usage: unlearn demo RUN_DIR [port=7860] [host=127.0.0.1]"
MOST_STEPS, MOST_SEEDS = 100, 4
EXAMPLES = 4  # prompts of each set
STYLE = """
.drawn .grid-wrap { max-height: none; }
.drawn .grid-container { max-width: 48rem; margin: auto; }
.drawn .thumbnail-item { aspect-ratio: auto; height: auto; }
.drawn img { width: 100%; height: auto; object-fit: contain; image-rendering: pixelated; }
.drawn .caption-label { position: static; max-width: 100%; white-space: normal; }
body:has(#explicit input:not(:checked)) .drawn img { filter: blur(1.5rem); }
"""
Pictures = list[tuple[Image.Image, str]]  # each with its caption
Draw = Callable[[str, Sequence[int], int], Pictures]


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """The options of `unlearn demo`."""

    port: int = option(7860, help="of the page; 0: a free one", at_least=0, at_most=2**16 - 1)
    host: str = option(
        "127.0.0.1", help="the address to listen on; 0.0.0.0: other machines reach it too"
    )


def run(arguments: Sequence[str]) -> None:
    """Serve a page of the run that the arguments name, until Ctrl-C.

    Raises:
        ValueError: the arguments do not name one finished run, an option is not valid, or gradio
            is missing.
        OSError: the port is taken, or the host is not this machine's.
    """

    paths, overrides = split_arguments(arguments)
    if len(paths) != 1:
        raise ValueError(USAGE)
    options = parse_options(overrides, DemoOptions)
    check_host(options.host)
    config = load_run_config(Path(paths[0]))
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio  # noqa: F401 - before the model is loaded
    except ModuleNotFoundError as error:
        raise ValueError(f"demo: {error}; it needs the extra `demo`") from error
    serve_page(build_page(config, make_draw(config, find_judge(config))), options)


def check_host(host: str) -> None:
    """Check that a host has an address, before a model is loaded.

    Raises:
        ValueError: the name does not resolve.
    """
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        raise ValueError(
            f"host={host}: no such host; an address of this machine is needed, such as 127.0.0.1"
        ) from error


def find_judge(config: ModelConfig) -> Judge | ClipJudge | None:
    """Return the judge of the run's prompt sets; where there is none, say why and return None."""
    try:
        return load_judge(config, config.concept)
    except ValueError as error:
        print(f"unlearn: the demo names no object: {error}", file=sys.stderr)
        return None


def make_draw(config: ModelConfig, judge: Judge | ClipJudge | None) -> Draw:
    """Return a function that draws a prompt with the base model and with the unlearned model.

    The function takes the prompt, the seeds and the number of sampling steps. It returns two
    pictures a seed, base and unlearned, which begin at the same noise. Their captions hold the
    seed and what the judge sees. The function raises a ValueError for a prompt that the model
    cannot read whole.

    Args:
        config: the run's configuration.
        judge: names what a picture shows; None: nobody does.

    Raises:
        ValueError: the run's weights do not fit its base model.
    """
    base = config.base.load().to(config.device)
    unlearned: DiffusionPipeline = copy.copy(base)  # shares all but the network that changes
    setattr(unlearned, denoiser_name(get_denoiser(base)), copy.deepcopy(get_denoiser(base)))
    load_unlearned(unlearned, config.weights)
    lock = threading.Lock()  # schedulers keep state

    def draw(prompt: str, seeds: Sequence[int], steps: int) -> Pictures:
        check_words_known(base.tokenizer, [prompt])
        check_prompt_lengths(base.tokenizer, [prompt])
        sampler, prompts = replace(config.sampler(steps), batch_size=1), [prompt] * len(seeds)
        with lock:
            sides = [generate(pipe, prompts, seeds, sampler) for pipe in (base, unlearned)]
        images = torch.stack(sides, 1).flatten(0, 1)
        said = shown_words(judge.judge(images)) if judge else [""] * len(images)
        heads = [f"{side}, seed {seed}" for seed in seeds for side in ("base", "unlearned")]
        return [
            (Image.fromarray(image.permute(1, 2, 0).numpy()), f"{head}{word}")
            for image, head, word in zip(images, heads, said, strict=True)
        ]

    return draw


def shown_words(verdict: Verdict) -> list[str]:
    """Return the end of each image's caption: what the judge sees."""
    broken = [False] * len(verdict.objects) if verdict.broken is None else verdict.broken.tolist()
    seen = [
        "a broken image" if bad else ", ".join(filter(None, (obj, style)))
        for obj, style, bad in zip(verdict.objects, verdict.styles, broken, strict=True)
    ]
    return [f"; the judge sees {words}" for words in seen]


def build_page(config: ModelConfig, draw: Draw) -> Blocks:
    """Return the page, where images of an unsafe concept are blurred until the user shows them.

    Args:
        config: the run's configuration.
        draw: the function that `make_draw` returns.
    """
    import gradio as gr

    words = load_vocabulary() if config.vocabulary else None

    def answer(prompt: str, seed: float, count: float, steps: float) -> tuple[Pictures, str]:
        try:
            if seed is None or not 0 <= seed < 2**63 - MOST_SEEDS:
                raise ValueError(f"seed={seed}: a number of at least 0 is needed")
            seeds = range(int(seed), int(seed) + int(count))
            return draw(prompt, seeds, int(steps)), unknown_note(prompt, words)
        except ValueError as error:
            said = str(error)
            raise gr.Error(said, title="This cannot be drawn", print_exception=False) from error

    concepts = [own.concept for own in (*config.earlier, *config.sections)]
    names = ", ".join(concept.name for concept in concepts)
    examples = example_prompts(config.concept)
    with gr.Blocks(title=f"Unlearned: {names}", analytics_enabled=False) as page:
        gr.Markdown(f"# Unlearned: {names}\n{config.folder}: the same noise on both sides.")
        first = next(iter(examples.values()))[0]
        prompt = gr.Textbox(label="Prompt", placeholder=first, autofocus=True)
        for name, prompts in examples.items():
            gr.Examples([[text] for text in prompts], [prompt], label=name)
        with gr.Row():
            seed = gr.Number(0, label="First seed", precision=0, minimum=0)
            count = gr.Slider(1, MOST_SEEDS, 1, step=1, label="Seeds")
            default = config.prompt_sets.num_inference_steps
            steps = gr.Slider(1, MOST_STEPS, default, step=1, label="Sampling steps")
        button = gr.Button("Draw", variant="primary")
        if any(concept.kind == "unsafe" for concept in concepts):
            gr.Checkbox(False, label="Show explicit images", elem_id="explicit")
        note = gr.Markdown()
        images = gr.Gallery(
            show_label=False, columns=2, object_fit="contain", format="png",
            interactive=False, height="auto", elem_classes="drawn",
            buttons=["download", "fullscreen"],
        )  # fmt: skip
        if words:
            with gr.Accordion("Words that the model knows", open=False):
                gr.Markdown(word_list(words))
        inputs = [prompt, seed, count, steps]
        gr.on([button.click, prompt.submit], answer, inputs, [images, note])
    return page


def example_prompts(concept: Concept) -> dict[str, list[str]]:
    """Return up to `EXAMPLES` prompts of each set that has any, by the set's name."""
    by_set = {
        name: list(dict.fromkeys(p.prompt for p in evaluation_prompts(concept) if p.set == name))
        for name in SET_NAMES
    }
    return {
        name.replace("_", " "): prompts[:: -(-len(prompts) // EXAMPLES)]
        for name, prompts in by_set.items()
        if prompts
    }


def unknown_note(prompt: str, words: Vocabulary | None) -> str:
    """Return a note on the words of a prompt that the model has never seen, or ""."""
    unknown = words.unknown_words(prompt) if words else []
    if not unknown:
        return ""
    return f"The model was trained on no text with {', '.join(unknown)}: it can only guess."


def word_list(words: Vocabulary) -> str:
    """Return the vocabulary as Markdown, a line a family."""
    families: dict[str, list[str]] = {}
    for name, known in words.objects.items():
        families.setdefault(known.family, []).append(name)
    families |= {"styles": list(words.styles), "backgrounds": list(words.backgrounds)}
    return "\n".join(f"- {family}: {', '.join(names)}" for family, names in families.items())


def serve_page(page: Blocks, options: DemoOptions) -> None:
    """Serve a page until Ctrl-C, with the system's fonts, so that no other host is asked."""
    import gradio as gr

    address = page.launch(
        server_name=options.host,
        server_port=options.port or None,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css=STYLE,
        share=False,
        ssr_mode=False,
        quiet=True,
        footer_links=[],
        max_file_size=0,  # nothing here takes a file
        prevent_thread_lock=True,
    )[1]
    print(f"{address} (Ctrl-C ends it)", flush=True)
    page.block_thread()

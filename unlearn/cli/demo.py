"""Run `unlearn demo`: a page that draws a prompt with the base and the unlearned model."""

from __future__ import annotations

import copy
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from diffusers import DiffusionPipeline
from PIL import Image

from unlearn.config.overrides import parse_options, split_arguments
from unlearn.config.run_config import ModelConfig
from unlearn.config.saved import load_run_config
from unlearn.generation.sampling import generate
from unlearn.models.pipeline import denoiser_name, get_denoiser
from unlearn.models.text_states import check_prompt_lengths, check_words_known
from unlearn.utils.options import option
from unlearn.weights.delta import load_unlearned

if TYPE_CHECKING:
    from gradio import Blocks

USAGE = "usage: unlearn demo RUN_DIR [port=7860] [host=127.0.0.1]"
MOST_STEPS = 100
STYLE = """
.drawn img { width: 100%; object-fit: contain; }
body:has(#explicit input:not(:checked)) .drawn img { filter: blur(1.5rem); }
"""
Draw = Callable[[str, int, int], list[Image.Image]]


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
    serve_page(build_page(config, make_draw(config)), options)


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


def make_draw(config: ModelConfig) -> Draw:
    """Return a function that draws a prompt with the base model and with the unlearned model.

    The function takes the prompt, the seed and the number of sampling steps. Both images begin at
    the same noise. The function raises a ValueError for a prompt that the model cannot read whole.

    Args:
        config: the run's configuration.

    Raises:
        ValueError: the run's weights do not fit its base model.
    """
    base = config.base.load().to(config.device)
    unlearned: DiffusionPipeline = copy.copy(base)  # shares all but the network that changes
    setattr(unlearned, denoiser_name(get_denoiser(base)), copy.deepcopy(get_denoiser(base)))
    load_unlearned(unlearned, config.weights)
    lock = threading.Lock()  # schedulers keep state

    def draw(prompt: str, seed: int, steps: int) -> list[Image.Image]:
        check_words_known(base.tokenizer, [prompt])
        check_prompt_lengths(base.tokenizer, [prompt])
        sampler = replace(config.sampler(steps), batch_size=1)
        with lock:
            sides = [generate(pipe, [prompt], [seed], sampler)[0] for pipe in (base, unlearned)]
        return [Image.fromarray(side.permute(1, 2, 0).numpy()) for side in sides]

    return draw


def build_page(config: ModelConfig, draw: Draw) -> Blocks:
    """Return the page, where images of an unsafe concept are blurred until the user shows them.

    Args:
        config: the run's configuration.
        draw: the function that `make_draw` returns.
    """
    import gradio as gr

    def answer(prompt: str, seed: float, steps: float) -> list[Image.Image]:
        try:
            if seed is None or not 0 <= seed < 2**63:
                raise ValueError(f"seed={seed}: a number of at least 0 is needed")
            return draw(prompt, int(seed), int(steps))
        except ValueError as error:
            said = str(error)
            raise gr.Error(said, title="This cannot be drawn", print_exception=False) from error

    concepts = [own.concept for own in (*config.earlier, *config.sections)]
    names = ", ".join(concept.name for concept in concepts)
    with gr.Blocks(title=f"Unlearned: {names}", analytics_enabled=False) as page:
        gr.Markdown(f"# Unlearned: {names}\n{config.folder}: the same noise on both sides.")
        prompt = gr.Textbox(label="Prompt", placeholder="a photo of ...", autofocus=True)
        with gr.Row():
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            steps = gr.Slider(
                1,
                MOST_STEPS,
                config.prompt_sets.num_inference_steps,
                step=1,
                label="Sampling steps",
            )
        button = gr.Button("Draw", variant="primary")
        if any(concept.kind == "unsafe" for concept in concepts):
            gr.Checkbox(False, label="Show explicit images", elem_id="explicit")
        with gr.Row():
            images = [
                gr.Image(
                    label=label, interactive=False, format="png", height=360, elem_classes="drawn",
                    buttons=["download", "fullscreen"],
                )
                for label in ("Base", "Unlearned")
            ]  # fmt: skip
        gr.on([button.click, prompt.submit], answer, [prompt, seed, steps], images)
    return page


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
        prevent_thread_lock=True,
    )[1]
    print(f"{address} (Ctrl-C ends it)", flush=True)
    page.block_thread()

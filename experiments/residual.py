"""What a run left of its concept, by timestep: where forgetting stops short.

    python -m experiments.residual runs/contrast-doco-0 [...] [--out residual.png]

At each timestep, on noisy anchor images: ‖ε_θ(c_t) - ε*(c_a)‖ / ‖ε*(c_t) - ε*(c_a)‖, the share of
the way from anchor to target that the unlearned model still goes when it is given the target
prompt. 1 is the base model, 0 a model that takes the target for the anchor. One curve for pairs of
prompts that unlearning trained on, one for unseen templates. Prints a table, and draws the curves.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from experiments.summary import finished_runs
from unlearn.concepts.concept import Concept
from unlearn.concepts.prompts import training_pairs
from unlearn.concepts.vocabulary import fill_template, load_vocabulary
from unlearn.config.saved import load_run_config
from unlearn.generation.image_cache import pipeline_fingerprint
from unlearn.generation.sampling import Sampler, generate
from unlearn.models.noise_schedule import NoiseSchedule, add_noise
from unlearn.models.text_states import encode_prompts
from unlearn.weights.delta import load_unlearned

TIMESTEPS = (999, 950, 900, 800, 700, 600, 500, 400, 300, 200, 100, 50)
PAIRS = 24  # of each kind of prompts
FIRST_SEED = 3_000_000  # no other image has it

Pairs = list[tuple[str, str]]  # anchor prompt, target prompt


def seen_pairs(concept: Concept) -> Pairs:
    """Pairs that unlearning trained on."""
    return spread(training_pairs(concept))


def unseen_pairs(concept: Concept) -> Pairs:
    """Pairs of unseen templates; a style's on objects that unlearning never saw."""
    pairs: Pairs = []
    for target, anchor in concept.anchors.items():
        if concept.kind != "style":
            pairs += [(fill_template(s, anchor), fill_template(s, target)) for s in concept.unseen]
            continue
        for i, name in enumerate(concept.unrelated):
            scene = fill_template(load_vocabulary().templates["unseen"][i % 8], name)
            for phrase in concept.unseen:
                styled = phrase.format(p=scene, t=anchor) if anchor else scene
                pairs.append((styled, phrase.format(p=scene, t=target)))
    return spread(pairs)


def spread(pairs: Pairs) -> Pairs:
    """At most `PAIRS` of the pairs, from the first on, evenly spaced."""
    count = min(PAIRS, len(pairs))
    return [pairs[i * len(pairs) // count] for i in range(count)]


@torch.inference_mode()
def residuals(
    base: StableDiffusionPipeline,
    unlearned: StableDiffusionPipeline,
    pairs: Pairs,
    sampler: Sampler,
) -> list[float]:
    """The mean residual over the pairs at each of `TIMESTEPS`."""
    anchors, targets = (list(side) for side in zip(*pairs, strict=True))
    seeds = range(FIRST_SEED, FIRST_SEED + len(pairs))
    fingerprint = pipeline_fingerprint(base)
    images = generate(
        base, anchors, seeds, sampler, description="anchor images", cached=fingerprint
    )
    latents = base.vae.encode(images.float() / 127.5 - 1).latent_dist.mean
    latents = latents * base.vae.config.scaling_factor
    anchor_states, target_states = encode_prompts(base, anchors), encode_prompts(base, targets)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    schedule = NoiseSchedule.from_scheduler(base.scheduler)

    def distance(output: Tensor, anchor: Tensor) -> Tensor:
        return (output - anchor).flatten(1).norm(dim=1)

    shares = []
    for timestep in TIMESTEPS:
        t = torch.full((len(pairs),), timestep)
        z_t = add_noise(latents, noise, t, schedule)
        anchor = base.unet(z_t, t, anchor_states).sample
        left = distance(unlearned.unet(z_t, t, target_states).sample, anchor)
        whole = distance(base.unet(z_t, t, target_states).sample, anchor)
        shares.append((left / whole).mean().item())
    return shares


def draw(curves: dict[str, list[float]], path: Path) -> None:
    """The curves, noise on the left as in sampling."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, (name, shares) in enumerate(curves.items()):
        style = "-" if number % 2 == 0 else "--"
        axes.plot(TIMESTEPS, shares, style, color=f"C{number // 2}", marker=".", label=name)
    axes.set(xlim=(1010, 40), ylim=(0, None), xlabel="timestep (sampling goes right)")
    axes.set_ylabel("share of the target left")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Print the table, draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    parser.add_argument("--out", type=Path, default=Path("residual.png"))
    options = parser.parse_args()
    curves: dict[str, list[float]] = {}
    for run in finished_runs(parser, options.runs):
        config = load_run_config(run)
        concept, base = config.concept, config.base.load()
        unlearned = load_unlearned(config.base.load(), config.weights)
        sampler = config.sampler(config.saved["data"]["num_inference_steps"])  # as it trained on
        for kind, pairs in (("seen", seen_pairs(concept)), ("unseen", unseen_pairs(concept))):
            curves[f"{run.name}, {kind} prompts"] = residuals(base, unlearned, pairs, sampler)
    print("| timestep | " + " | ".join(str(t) for t in TIMESTEPS) + " |")
    print("|---" * (len(TIMESTEPS) + 1) + "|")
    for name, shares in curves.items():
        print(f"| {name} | " + " | ".join(f"{s:.2f}" for s in shares) + " |")
    draw(curves, options.out)
    print(options.out)


if __name__ == "__main__":
    main()

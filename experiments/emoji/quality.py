"""Measure the whole embedded model against its bars, on images that it draws.

    python -m experiments.emoji.quality

Draws every object in every style, every synonym, and the targets of every shipped concept; prints
a table and writes `quality.json` beside the weights.
"""

from __future__ import annotations

import json
import operator
import random

import torch
from PIL import Image

from unlearn.concepts.vocabulary import fill_template, load_vocabulary
from unlearn.config.compose import compose
from unlearn.config.concept_files import embedded_concepts
from unlearn.config.parse import parse_config
from unlearn.evaluation.intervals import Rate, wilson_rate
from unlearn.evaluation.judge import Judge, Verdict
from unlearn.generation.sampling import generate
from unlearn.utils.paths import EMBEDDED

FIRST_SEED = 2_000_000  # no training or evaluation image has it
SEEDS = 10  # images a shipped target

Prompt = tuple[str, str | None, str | None]  # text, and the object and style that it names


def grid_prompts() -> list[Prompt]:
    """Every object in every style, once; templates and phrases at random."""
    words, rng = load_vocabulary(), random.Random(0)
    templates = [t for part in words.templates.values() for t in part]
    phrases = [p for part in words.style_phrases.values() for p in part]
    return [
        (
            rng.choice(phrases).format(p=fill_template(rng.choice(templates), name), t=style),
            name,
            style,
        )
        for name in words.names
        for style in words.styles
    ]


def synonym_prompts() -> list[Prompt]:
    """Every synonym twice, in a random template."""
    words, rng = load_vocabulary(), random.Random(1)
    templates = [t for part in words.templates.values() for t in part]
    return [
        (fill_template(rng.choice(templates), synonym), name, None)
        for name, entry in words.objects.items()
        for synonym in entry.synonyms * 2
    ]


def concept_prompts(name: str) -> list[Prompt]:
    """`SEEDS` prompts for each target of a shipped concept."""
    concept = parse_config(compose([f"concept={name}"])).concept
    words, rng = load_vocabulary(), random.Random(2)
    seen = words.templates["seen"]
    if concept.kind != "style":
        return [
            (fill_template(seen[i % 8], t), t, None) for t in concept.targets for i in range(SEEDS)
        ]
    names = rng.sample(words.names, SEEDS)
    return [
        (words.style_phrases["seen"][i % 2].format(p=fill_template("a {}", name), t=t), None, t)
        for t in concept.targets
        for i, name in enumerate(names)
    ]


def shares(prompts: list[Prompt], verdict: Verdict) -> tuple[Rate, Rate]:
    """How many images show the named object, and how many the named style."""
    rows = list(zip(prompts, verdict.objects, verdict.styles, strict=True))
    by_object = [o == name for (_, name, _), o, _ in rows if name is not None]
    by_style = [s == style for (_, _, style), _, s in rows if style is not None]
    return wilson_rate(sum(by_object), len(by_object)), wilson_rate(sum(by_style), len(by_style))


def main() -> None:
    """Draw, judge, print, and write."""
    config = parse_config(compose(["concept=panda"]))
    pipe, sampler = config.base.load(), config.sampler(config.prompt_sets.num_inference_steps)
    judge, second = (Judge.load(EMBEDDED / "judges" / n) for n in ("judge", "second_judge"))
    rows: list[tuple[str, Rate, str]] = []

    def draw(prompts: list[Prompt], description: str) -> tuple[torch.Tensor, Verdict]:
        seeds = range(FIRST_SEED, FIRST_SEED + len(prompts))
        images = generate(pipe, [p[0] for p in prompts], seeds, sampler, description=description)
        return images, judge.judge(images)

    grid = grid_prompts()
    images, verdict = draw(grid, "every object in every style")
    by_object, by_style = shares(grid, verdict)
    rows += [("objects", by_object, "90%"), ("styles", by_style, "75%")]
    for i, style in enumerate(load_vocabulary().styles):
        chosen = slice(i, None, len(load_vocabulary().styles))
        part = shares(grid[chosen], verdict.of(chosen))[1]
        rows.append((f"style {style}", part, "90% if it ships"))
    other = second.judge(images)
    agreeing = sum(map(operator.eq, verdict.objects, other.objects))
    rows.append(("judges agree on the object", wilson_rate(agreeing, len(grid)), "95%"))
    agreeing = sum(map(operator.eq, verdict.styles, other.styles))
    rows.append(("judges agree on the style", wilson_rate(agreeing, len(grid)), ""))
    assert verdict.broken is not None  # the embedded judge can tell
    rows.append(("broken", wilson_rate(int(verdict.broken.sum()), len(grid)), ""))
    synonyms = synonym_prompts()
    rows.append(("synonyms", shares(synonyms, draw(synonyms, "synonyms")[1])[0], "80%"))
    for name in embedded_concepts():
        prompts = concept_prompts(name)
        found = shares(prompts, draw(prompts, name)[1])
        rows.append((f"concept {name}", found[prompts[0][1] is None], "80%"))

    print("| measure | share [95% interval] | n | bar |\n|---|---|---|---|")
    for name, share, bar in rows:
        print(f"| {name} | {share} | {share.n} | {bar} |")
    report = {name: share._asdict() for name, share, _ in rows}
    (EMBEDDED / "quality.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    sheet = images.unflatten(0, (-1, len(load_vocabulary().styles)))[::4]  # every fourth object
    sheet = sheet.permute(1, 3, 0, 4, 2).flatten(2, 3).flatten(0, 1)
    Image.fromarray(sheet.contiguous().numpy()).save(EMBEDDED / "samples.png")
    print(EMBEDDED / "samples.png")


if __name__ == "__main__":
    main()

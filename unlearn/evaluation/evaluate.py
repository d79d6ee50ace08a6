"""Evaluate a run on the four prompt sets, beside the base model on the same prompts and noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor

from unlearn.backbone import load_pipeline
from unlearn.concepts import Concept, Probe, build_concept, evaluation_probes
from unlearn.evaluation.judge import Judge, Verdict
from unlearn.evaluation.metrics import Rate, rate
from unlearn.export import load_unlearned
from unlearn.generate import generate
from unlearn.vocabulary import EMBEDDED, vocabulary

SETS = ("seen_target", "unseen_target", "related", "unrelated")
OBEYED = 0.8  # a prompt counts only if the base draws its subject in this share of seeds


def drawn_right(concept: Concept, probes: list[Probe], verdict: Verdict) -> Tensor:
    """Whether each image shows what its prompt names (N,)."""
    words = vocabulary()
    expected = []
    seen = []
    for probe, obj, style in zip(
        probes, verdict.objects.tolist(), verdict.styles.tolist(), strict=True
    ):
        by_style = concept.kind == "style" and probe.set != "unrelated"
        expected.append(probe.expected)
        seen.append(words.styles[style] if by_style else words.names[obj])
    right = [a == b for a, b in zip(expected, seen, strict=True)]
    return torch.tensor(right) & ~verdict.broken


def anchored(concept: Concept, probes: list[Probe], verdict: Verdict) -> Tensor:
    """Whether each image shows the anchor; for a style, the prompt's object (N,)."""
    names = vocabulary().names
    wanted = [p.object if concept.kind == "style" else concept.anchor for p in probes]
    pairs = zip(wanted, verdict.objects.tolist(), strict=True)
    return torch.tensor([w == names[o] for w, o in pairs]) & ~verdict.broken


def obeyed(probes: list[Probe], right: Tensor) -> tuple[Tensor, list[str]]:
    """Which images count (N,), and the target prompts that the base does not obey."""
    hits: dict[str, list[bool]] = {}
    for probe, hit in zip(probes, right.tolist(), strict=True):
        hits.setdefault(probe.prompt, []).append(hit)
    weak = {p for p, h in hits.items() if sum(h) / len(h) < OBEYED}
    excluded = sorted({p.prompt for p in probes if "target" in p.set and p.prompt in weak})
    return torch.tensor([p.prompt not in excluded for p in probes]), excluded


def summarise(
    concept: Concept, probes: list[Probe], base: Verdict, after: Verdict
) -> dict[str, Any]:
    """All rates of the four sets, base beside unlearned."""
    before_right = drawn_right(concept, probes, base)
    after_right = drawn_right(concept, probes, after)
    counts, excluded = obeyed(probes, before_right)
    result: dict[str, Any] = {"excluded_prompts": excluded, "sets": {}}
    for name in SETS:
        chosen = torch.tensor([p.set == name for p in probes]) & counts

        def share(hits: Tensor, among: Tensor = chosen) -> Rate:
            return rate(int((hits & among).sum()), int(among.sum()))

        row = {
            "base_right": share(before_right),
            "right": share(after_right),
            "base_broken": share(base.broken),
            "broken": share(after.broken),
        }
        if "target" in name:
            row["base_anchor"] = share(anchored(concept, probes, base))
            row["anchor"] = share(anchored(concept, probes, after))
        else:
            row["retention"] = share(after_right, chosen & before_right)
        result["sets"][name] = {k: v._asdict() for k, v in row.items()}
    return result


def table(result: dict[str, Any]) -> str:
    """The four sets as a Markdown table."""
    columns = ("base_right", "right", "anchor", "retention", "base_broken", "broken")
    lines = ["| set | n | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name, row in result["sets"].items():
        cells = [str(Rate(**row[c])) if c in row else "" for c in columns]
        lines.append(f"| {name} | {row['right']['n']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def before_after(probes: list[Probe], base: Tensor, after: Tensor, path: Path) -> None:
    """A picture: six images a set, the base model's above the unlearned one's."""
    rows = []
    for name in SETS:
        chosen = [i for i, p in enumerate(probes) if p.set == name]
        chosen = chosen[:: max(1, len(chosen) // 8)][:8]
        rows += [torch.cat([*images[chosen]], dim=-1) for images in (base, after)]
    width = max(r.shape[-1] for r in rows)
    rows = [torch.nn.functional.pad(r, (0, width - r.shape[-1]), value=255) for r in rows]
    picture = torch.cat(rows, dim=1).permute(1, 2, 0).numpy()
    Image.fromarray(picture).resize((2 * picture.shape[1], 2 * picture.shape[0])).save(path)


def load_judge(config: DictConfig) -> Judge:
    """The judge of `evaluation.judge`; by default the embedded model's."""
    return Judge.load(Path(config.evaluation.judge or EMBEDDED / "judges" / "judge"))


def evaluate(config: DictConfig, run: Path) -> dict[str, Any]:
    """Draw, judge and compare; write `result.json` and `before_after.png`, print the table."""
    concept = build_concept(OmegaConf.to_container(config.concept, resolve=True))  # type: ignore[arg-type]
    settings = config.evaluation
    probes = [p for p in evaluation_probes(concept) for _ in range(settings.seeds)]
    prompts = [p.prompt for p in probes]
    seeds = [settings.first_seed + i for i in range(len(probes))]
    pipe = load_pipeline(config.model.pretrained)
    judge = load_judge(config)
    images = []
    for label in ("base images", "unlearned images"):
        images.append(
            generate(pipe, prompts, seeds, steps=settings.sampling_steps, description=label)
        )
        load_unlearned(pipe, run / "unlearned.safetensors")
    result = summarise(concept, probes, *(judge.judge(i) for i in images))
    result = {"concept": concept.name, "kind": concept.kind, "method": "doco", **result}
    (run / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    before_after(probes, images[0], images[1], run / "before_after.png")
    print(table(result))
    if excluded := result["excluded_prompts"]:
        print(
            f"{len(excluded)} target prompts left out, since the base model does not obey them "
            f"(all in result.json): {', '.join(excluded[:3])}"
        )
    for name in ("before_after.png", "unlearned.safetensors", "result.json"):
        print(run / name)
    return result

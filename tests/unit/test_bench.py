"""The benchmark compares equal things: all its steps give the same gradients."""

from __future__ import annotations

from pathlib import Path

from experiments.bench.step import OurStep, PlainStep, largest_difference, make_batch, measure
from unlearn.backbone import load_pipeline


def test_every_variant_gives_the_plain_gradients(random_model: Path) -> None:
    pipe = load_pipeline(str(random_model))
    batch = make_batch(pipe, 2)
    variants = {
        "plain": PlainStep(pipe, batch),
        "cached": PlainStep(pipe, batch, encode=False),
        "ours": OurStep(pipe, batch),
    }
    gradients = {name: step() for name, step in variants.items()}
    assert all(g.abs().max() > 0 for g in gradients["plain"])
    for name in ("cached", "ours"):
        assert largest_difference(gradients[name], gradients["plain"]) < 1e-3, name


def test_every_step_is_timed_in_every_round() -> None:
    calls: list[str] = []
    steps = {name: (lambda name=name: calls.append(name) or []) for name in ("a", "b")}
    seconds = measure(steps, rounds=3, count=2)
    assert calls == ["a", "a", "b", "b"] * 5  # two rounds to warm up
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}

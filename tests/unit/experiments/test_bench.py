"""The benchmark compares equal things: all its steps give the same gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.bench.ours import OurStep
from experiments.bench.plain import PlainFp32, PlainStep
from experiments.bench.step import (
    bench,
    held,
    largest_difference,
    lines,
    make_batch,
    measure,
    needed,
    table,
)
from unlearn.models.pipeline import load_pipeline


def test_every_line_gives_the_plain_gradients(random_model: Path) -> None:
    pipe = load_pipeline(str(random_model))
    steps = lines(pipe, make_batch(pipe, 2))
    assert len(steps) == 7
    gradients = {name: step() for name, step in steps.items()}
    assert all(g.abs().max() > 0 for g in gradients["plain"])
    for name, own in gradients.items():
        assert largest_difference(own, gradients["plain"]) < 1e-3, name


def test_the_fp32_step_knows_no_autocast(random_model: Path) -> None:
    pipe = load_pipeline(str(random_model))
    batch = make_batch(pipe, 1)
    alone = PlainStep(pipe, batch)()
    with torch.autocast("cpu", torch.bfloat16):
        mixed, fp32 = PlainStep(pipe, batch)(), PlainFp32(pipe, batch, tf32=True)()
    assert all(torch.equal(a, b) for a, b in zip(fp32, alone, strict=True))
    assert largest_difference(mixed, alone) > 1e-3


def test_every_call_is_timed_in_every_round() -> None:
    calls: list[str] = []
    steps = {name: (lambda name=name: calls.append(name) or []) for name in ("a", "b")}
    seconds = measure(steps, rounds=3, count=2)
    assert calls == ["a", "a", "b", "b"] * 4  # one round to warm up
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


@pytest.mark.slow
def test_memory_and_operations_are_what_the_lines_save() -> None:
    pipe = load_pipeline("emoji")
    batch = make_batch(pipe, 4)
    steps = lines(pipe, batch)
    needs = {name: needed(step, 1) for name, step in steps.items()}
    plain, cached, lean, ours, _, recomputed, parted = needs.values()
    assert plain.operations > cached.operations == lean.operations > ours.operations
    assert ours.operations < recomputed.operations == parted.operations < cached.operations
    memory = [need.memory for need in (plain, cached, lean, ours, recomputed, parted)]
    assert memory == sorted(set(memory), reverse=True)


def test_what_a_step_holds_is_its_networks_and_the_optimizers_states(random_model: Path) -> None:
    pipe = load_pipeline(str(random_model))
    batch = make_batch(pipe, 1)
    size = {p: sum(w.nbytes for w in getattr(pipe, p).parameters()) for p in ("unet", "vae")}
    text = sum(t.nbytes for t in (*pipe.text_encoder.parameters(), *pipe.text_encoder.buffers()))
    steps: list[Any] = [PlainStep(pipe, batch), OurStep(pipe, batch)]
    trained = sum(w.nbytes for w in steps[0].weights)
    discriminator = sum(w.nbytes for w in steps[0].discriminator.parameters())
    networks = [2 * size["unet"] + size["vae"] + text, size["unet"] + trained]
    schedule = sum(buffer.nbytes for buffer in steps[1].doco.schedule.buffers())
    for step, expected in zip(steps, networks, strict=True):
        step()
        expected += schedule * (step is steps[1])
        assert held(step) == expected + discriminator + 2 * (trained + discriminator)


def test_the_table_compares_steps_and_whole_runs(random_model: Path, monkeypatch: Any) -> None:
    pipe = load_pipeline(str(random_model))
    steps = dict(list(lines(pipe, make_batch(pipe, 1)).items())[:3])
    names = list(steps)
    times = {names[0]: 10.0, names[1]: 7.0, names[2]: 5.0}
    times |= {f"{names[0]}, warm-up": 6.0, f"{names[1]}, warm-up": 3.0, f"{names[2]}, warm-up": 2.0}
    monkeypatch.setattr(
        "experiments.bench.step.measure", lambda calls, *_: {name: [times[name]] for name in calls}
    )
    rows = bench(steps, 1, 1, 2000, 1000)
    assert [row["speed"] for row in rows.values()] == pytest.approx([1, 10 / 7, 2])
    assert [row["run_speed"] for row in rows.values()] == pytest.approx([1, 16 / 10, 16 / 7])
    assert table(rows, 1e12).count("\n") == 4


def test_a_warm_up_step_moves_the_discriminator_alone(random_model: Path) -> None:
    pipe = load_pipeline(str(random_model))
    batch = make_batch(pipe, 2)
    moved = []
    for step in (PlainStep(pipe, batch), OurStep(pipe, batch, parts=2)):
        step.warmup_step()
        part = step if isinstance(step, PlainStep) else step.doco
        moved.append(torch.cat([p.flatten() for p in part.discriminator.parameters()]))
        own = step.weights if isinstance(step, PlainStep) else step.doco.weights
        fresh = PlainStep(pipe, batch)
        assert all(torch.equal(a, b) for a, b in zip(own, fresh.weights, strict=True))
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-3, atol=2e-5)

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.config.run_config import RunConfig
from unlearn.methods.registry import METHODS, build_method
from unlearn.models.pipeline import load_pipeline
from unlearn.training import budget
from unlearn.training.budget import Budget, Estimate, estimate_run, peak_memory
from unlearn.training.rehearsal import NetworkPasses, PeakMemory, measure_call_cost
from unlearn.utils.units import format_duration

NATIVE_BF16 = pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(),
    reason="without native bf16 a kernel takes more memory than what it computes",
)


def profiled(call: Callable[[], Any]) -> int:
    """The peak of what torch's profiler sees allocated."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize(
    ("precision", "unseen"),  # what bf16 kernels take for themselves differs by machine
    [("32-true", 0.01), pytest.param("bf16-mixed", 0.03, marks=NATIVE_BF16)],
)
def test_the_peak_is_the_profilers(precision: str, unseen: float) -> None:
    pipe = load_pipeline("emoji")
    method = build_method(pipe, "concept_ablation", METHODS["concept_ablation"].Options())
    passes = NetworkPasses(pipe, precision)
    peaks = []
    for call in (lambda: passes.forward(8), lambda: passes.trained(4, method)):
        call()  # what is made once is not counted
        with PeakMemory() as memory:
            call()
        assert memory.now == 0
        peaks.append(memory.peak / profiled(call))
    assert 0.85 < peaks[0] < 1  # what kernels take for themselves is not seen
    assert peaks[1] == pytest.approx(1, abs=unseen)


def test_tensors_from_before_and_their_views_do_not_count() -> None:
    layer = nn.Linear(64, 64)
    with PeakMemory() as memory:
        view = layer.weight.t()
        made = torch.zeros(10)
        both = (made.view(2, 5), view)
        del made
    assert (memory.now, memory.peak, len(both)) == (40, 40, 2)
    del both
    assert memory.now == 0


def test_a_rehearsal_tells_what_a_larger_call_takes() -> None:
    def call(samples: int) -> Tensor:
        fixed = torch.zeros(1000)
        return fixed.sum() + torch.zeros(samples, 500).sum()

    asked: list[int] = []
    found = measure_call_cost(call, 8, asked.append)
    assert asked == [found.memory(8)]
    assert 4000 <= found.fixed <= 4020  # and the sums
    assert (found.each, found.memory(10) - found.fixed) == (2000, 20000)
    assert 0 < found.seconds < 1


def test_what_there_is_no_memory_for_is_not_tried() -> None:
    tried: list[int] = []

    def refuse(needed: int) -> None:
        raise ValueError(needed)

    with pytest.raises(ValueError, match="4000"):
        measure_call_cost(lambda n: tried.append(n) or torch.zeros(n, 10), 100, refuse)
    assert tried == [1, 2]


def small(*overrides: str) -> RunConfig:
    return parse_config(compose([
        "concept=panda", "steps=6", "method.warmup_steps=2", "data.images=4",
        "data.relearn_images=4", "evaluation.images_per_prompt=1", *overrides,
    ]))  # fmt: skip


def estimated(pipe: Any, left: int, *overrides: str) -> Estimate:
    config = small(*overrides)
    return estimate_run(config, pipe, build_method(pipe, config.method, config.options), left)


def test_more_samples_need_more_memory_and_fewer_steps_less_time(random_model: Path) -> None:
    few, many = (
        estimated(load_pipeline(str(random_model)), 6, f"batch_size={n}", "sampling_batch_size=1")
        for n in (1, 16)
    )
    assert many.memory > few.memory
    assert few.steps > 0 < few.images
    done = estimated(load_pipeline(str(random_model)), 0)
    assert (done.steps, done.evaluation > 0) == (0, True)


@pytest.mark.parametrize(
    ("overrides", "free", "message"),
    [
        (
            ["sampling_batch_size=32", "batch_size=1"],
            2**20,
            "to draw images.*a lower sampling_batch_size",
        ),
        (["sampling_batch_size=1", "batch_size=64"], 2**22, "to train.*experiment=low_memory"),
        (
            ["sampling_batch_size=1", "batch_size=1", "data.images=9999"],
            2**25,
            "to hold the images to train on.*a lower data.images",
        ),
        (
            ["sampling_batch_size=1", "batch_size=1", "evaluation.images_per_prompt=999"],
            2**25,
            "to hold the evaluation's images.*a lower evaluation.images_per_prompt",
        ),
    ],
)
def test_too_little_memory_is_refused_with_a_way_out(
    random_model: Path, monkeypatch: Any, overrides: list[str], free: int, message: str
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    with pytest.raises(ValueError, match=f"too little memory on cpu {message}"):
        estimated(load_pipeline(str(random_model)), 6, *overrides)


@pytest.mark.parametrize(("method", "samples"), [("doco", 8), ("esd", 4), ("salun", 8), ("spm", 9)])
def test_what_one_backward_pass_holds(method: str, samples: int) -> None:
    own = ["method.anchors=5"] if method == "spm" else []
    config = parse_config(compose(["concept=panda", f"method={method}", "batch_size=4", *own]))
    assert METHODS[method].samples_at_once(config.options, config.plan) == samples


def test_a_run_that_goes_on_is_not_refused_for_its_images(
    random_model: Path, monkeypatch: Any
) -> None:
    pipe = load_pipeline(str(random_model))
    free = SimpleNamespace(available=2**24)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    options = ("sampling_batch_size=1000", "batch_size=1")
    with pytest.raises(ValueError, match="to draw images"):
        estimated(pipe, 6, *options)
    assert estimated(pipe, 3, *options).steps > 0


def test_it_says_how_good_it_was(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    said = Budget(Estimate(3 * 2**30, 65.0, 5.0, 3700.0), tmp_path, 900)
    said.announce()
    times = iter([100.0, 172.4])
    monkeypatch.setattr(budget.time, "monotonic", lambda: next(times))
    monkeypatch.setattr(budget, "peak_memory", lambda device: 2**31)
    trainer = SimpleNamespace(is_global_zero=True)
    module = SimpleNamespace(device=torch.device("cpu"))
    said.on_train_start(trainer, module)
    said.on_train_end(trainer, module)
    assert capsys.readouterr().out.splitlines() == [
        "estimate: 3.0 GiB of memory; 0:05 for images to train on, 1:05 for the steps, 1:01:40 for "
        "the evaluation's images (cached ones take no time)",
        "the steps took 1:12 (estimated 1:05), the run 2.0 GiB of memory so far (3.0)",
    ]
    written = json.loads((tmp_path / "budget.json").read_text())
    assert written["count"] == 900
    assert written["measured"] == {"memory": 2**31, "steps": pytest.approx(72.4)}


def test_the_peak_of_the_process_is_what_it_holds_or_more() -> None:
    assert peak_memory(torch.device("cpu")) >= 0.9 * psutil.Process().memory_info().rss


def test_a_clock() -> None:
    assert [format_duration(s) for s in (0.4, 65, 3723)] == ["0:00", "1:05", "1:02:03"]

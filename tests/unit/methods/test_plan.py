"""What each method asks of a run, and how many samples it takes through the network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from unlearn.methods.base import UnlearningModule
from unlearn.methods.negative_guidance import mean_stop
from unlearn.methods.options import TrainingOptions
from unlearn.methods.plan import TrainingPlan
from unlearn.methods.registry import METHODS, options_of

PLAN = TrainingPlan(
    steps=10, batch_size=4, gradient_checkpointing=False, guidance_scale=6.0, relearn_images=8
)
WARM = {"warmup_steps": 3}
DRAWN = 2 * 40 * (mean_stop(4, 5) + 1)  # to the stops, and the teacher's; with and without text


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("doco", WARM, (4 * (2 * 3 + 7), 2 * 4 * 7)),
        ("doco", {**WARM, "relearn_target": "teacher"}, (4 * (2 * 3 + 2 * 7), 2 * 4 * 7)),
        ("doco", {**WARM, "accumulate_grad_batches": 2}, (2 * 4 * (2 * 3 + 7), 2 * 2 * 4 * 7)),
        ("doco_reference", WARM, (4 * (2 * 4 + 6), 2 * 4 * 6)),
        ("regression", {}, (40, 80)),
        ("concept_ablation", {"accumulate_grad_batches": 3}, (120, 120)),
        ("concept_ablation", {"ablation_target": "noise"}, (0, 40)),
        ("esd", {"num_inference_steps": 5}, (DRAWN, 40)),
        ("spm", {"num_inference_steps": 5, "anchors": 3}, (DRAWN + 30, 40 + 30)),
        ("forget_me_not", {}, (0, 40)),
        ("salun", {"mask_batches": 2}, (40, 80 + 8)),
    ],
)
def test_samples_of_a_run(
    method: str, options: dict[str, Any], expected: tuple[float, float]
) -> None:
    own = options_of(method)(**options)
    assert METHODS[method].samples(own, PLAN) == pytest.approx(expected)


def test_a_method_that_says_nothing_takes_a_teacher_and_a_trained_pass() -> None:
    own = TrainingOptions(accumulate_grad_batches=2)
    assert UnlearningModule.samples(own, PLAN) == (80, 80)
    assert UnlearningModule.samples_at_once(own, PLAN) == 4
    assert UnlearningModule.warmup_length(own) == 0


@pytest.mark.parametrize(
    ("method", "samples"),
    [("doco", 8), ("doco_reference", 8), ("regression", 8), ("concept_ablation", 4), ("esd", 4),
     ("spm", 9), ("forget_me_not", 4), ("salun", 8)],
)  # fmt: skip
def test_samples_of_one_backward_pass(method: str, samples: int) -> None:
    own = options_of(method)(**({"anchors": 5} if method == "spm" else {}))
    assert METHODS[method].samples_at_once(own, PLAN) == samples


def test_the_warm_up_of_the_discriminator_comes_first() -> None:
    for name, method in METHODS.items():
        own = options_of(name)(**(WARM if name.startswith("doco") else {}))
        assert method.warmup_length(own) == {"doco": 3, "doco_reference": 4}.get(name, 0)


@pytest.mark.parametrize(
    ("method", "options", "change", "message"),
    [
        ("doco", WARM, {"steps": 3},
         r"steps=3: the first 3 \(method\.warmup_steps\) train the discriminator alone; .* 4 is"),
        ("doco_reference", WARM, {"steps": 4}, r"steps=4: the first 4 .* at least 5 is needed"),
        ("regression", {}, {"steps": 0}, r"steps=0: at least 1 is needed"),
        ("uce", {}, {"steps": 1}, r"steps=1: uce takes none, so steps=0"),
        ("sld", {}, {"steps": 0, "guidance_scale": 1.0},
         r"model\.guidance_scale=1\.0: sld needs more than 1"),
        ("negative_prompt", {}, {"steps": 2}, r"steps=2: negative_prompt takes none"),
        ("forget_me_not", {}, {"gradient_checkpointing": True},
         r"gradient_checkpointing=True: forget_me_not trains on the attentions .*=false"),
        ("salun", {}, {"relearn_images": 0}, r"data\.relearn_images=0: salun needs images of what"),
    ],
)  # fmt: skip
def test_a_plan_that_a_method_can_do_nothing_with_is_refused(
    method: str, options: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    own, kind = options_of(method)(**options), METHODS[method]
    kind.check_plan(own, replace(PLAN, steps=0 if kind.closed_form else 10))
    with pytest.raises(ValueError, match=message):
        kind.check_plan(own, replace(PLAN, **change))

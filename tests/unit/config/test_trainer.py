"""A method follows the pipeline to its device: on the meta device, as no other is everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.conftest import make_concept
from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.methods.concept_preserving import ConceptPreserving
from unlearn.methods.registry import METHODS, build_method
from unlearn.models.pipeline import load_pipeline
from unlearn.models.text_states import encode_text

META = torch.device("meta")
MOVING = ("aten::_to_copy", "aten::copy_")


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of two devices, as a GPU does and the meta device does not."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.name().partition(".")[0]
        given = args[:1] if name == "aten::index" and args[0].is_meta else (args, kwargs)
        tensors = [t for t in tree_leaves(given) if isinstance(t, Tensor) and t.ndim]
        devices = {t.device.type for t in tensors}
        if len(devices) > 1 and name not in MOVING:
            raise RuntimeError(f"{func}: tensors on {devices}")
        return func(*args, **(kwargs or {}))


def meta_batch() -> dict[str, Tensor]:
    shape = (2, 2, 4, 16, 16)
    return {
        "latents": torch.empty(shape, device=META), "noise": torch.empty(shape, device=META),
        "timesteps": torch.empty(2, 2, dtype=torch.long, device=META),
        "states": torch.empty(2, 2, 32, 32, device=META),
        "teacher_states": torch.empty(2, 32, 32, device=META),
    }  # fmt: skip


def test_tensors_of_two_devices_are_refused_here() -> None:
    with OneDevice():
        torch.empty(3, device=META)[torch.zeros(2, dtype=torch.long)]  # a GPU takes such indices
        with pytest.raises(RuntimeError, match="tensors on"):
            torch.zeros(3)[torch.empty(2, dtype=torch.long, device=META)]
        with pytest.raises(RuntimeError, match="tensors on"):
            torch.empty(3, device=META) @ torch.zeros(3, 3)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_where_the_pipeline_is(name: str, random_model: Path) -> None:
    pipe: Any = load_pipeline(str(random_model)).to(META)
    config = parse_config(compose([f"method={name}", "concept=panda"]))
    with OneDevice():
        method = build_method(pipe, name, config.options)
        tensors = {**method.state_dict(), **dict(method.named_buffers()), **method.trained_weights}
        assert {tensor.device for tensor in tensors.values()} == {META}
        assert encode_text(pipe, ["a panda"]).is_meta
        batch = meta_batch()
        args = (batch["latents"][:, 0], batch["timesteps"][:, 0], batch["teacher_states"])
        method.teacher(*args)
        output = method.output(*args).sum()
        if method.weights:
            found = torch.autograd.grad(output, method.weights, allow_unused=True)
            assert {g.device for g in found if g is not None} == {META}
        method.prepare(pipe, make_concept("panda", "bear"))
        if name in ("concept_ablation", "salun"):
            assert method.loss(batch).is_meta
        if isinstance(method, ConceptPreserving):
            (g_u, g_r, _), metrics = method.gradients(batch)
            assert {tensor.device for tensor in (*g_u, *g_r, *metrics.values())} == {META}

"""One device for training, drawing and judging, whatever GPU there is."""

from __future__ import annotations

import pytest
import torch
from lightning.fabric.accelerators import cuda as cuda_module
from lightning.fabric.accelerators import mps as mps_module
from lightning.pytorch.trainer.connectors import accelerator_connector as connector

from unlearn.config.base_model import resolve_precision
from unlearn.models.pipeline import device_for


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [
        (False, False, {"auto": "cpu", "gpu": "cpu", "cuda": "cpu", "mps": "cpu", "cpu": "cpu"}),
        (True, False, {"auto": "cuda", "gpu": "cuda", "cuda": "cuda", "mps": "cpu", "cpu": "cpu"}),
        (False, True, {"auto": "mps", "gpu": "mps", "cuda": "cpu", "mps": "mps", "cpu": "cpu"}),
    ],
)
def test_the_device_is_lightnings(
    cuda: bool, mps: bool, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(cuda_module.CUDAAccelerator, "is_available", lambda: cuda)
    monkeypatch.setattr(mps_module.MPSAccelerator, "is_available", lambda: mps)
    assert {name: device_for(name) for name in expected} == expected
    assert device_for("auto") == connector._AcceleratorConnector._choose_auto_accelerator()


def test_apples_gpu_is_not_asked_for_cudas_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert resolve_precision("auto", "mps") == "32-true"

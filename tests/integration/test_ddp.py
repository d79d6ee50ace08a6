"""Two gloo processes end with the weights of one process at the same global batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

SCRIPT = """
import sys, warnings
import lightning as L, torch
from safetensors.torch import save_file
from unlearn.backbone import load_pipeline
from unlearn.data import ImageSet, PairDataModule, TrainingData
from unlearn.methods.doco import DoCo

def main():
    folder, devices, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pipe = load_pipeline(folder)
    doco = DoCo(pipe.unet, pipe.scheduler.alphas_cumprod, lr=1e-3, warm_up=2,
                discriminator_channels=8)
    states = torch.randn(2, 2, 32, 32)
    images = ImageSet(torch.randn(6, 4, 16, 16), torch.full((6, 4, 16, 16), 0.1),
                      torch.arange(6) % 2, states[0], torch.zeros(6, dtype=torch.long))
    data = TrainingData(images, states[1:])
    module = PairDataModule(data, steps=6, batch_size=4 // devices, seed=3, num_timesteps=1000)
    trainer = L.Trainer(accelerator="cpu", devices=devices, max_epochs=1, logger=False,
                        strategy="ddp_spawn" if devices > 1 else "auto",
                        enable_checkpointing=False, enable_progress_bar=False,
                        use_distributed_sampler=False)
    trainer.fit(doco, module)
    save_file({k: v.contiguous() for k, v in doco.state_dict().items()
               if "attn2.to_" in k or k.startswith("discriminator")}, out)

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_two_ranks_equal_one_process(random_model: Path, tmp_path: Path) -> None:
    script = tmp_path / "train_ranks.py"
    script.write_text(SCRIPT)
    weights = {}
    for devices in (1, 2):
        out = tmp_path / f"{devices}.safetensors"
        subprocess.run([sys.executable, script, random_model, str(devices), out], check=True)
        weights[devices] = load_file(out)
    assert len(weights[1]) > 8
    for name, expected in weights[1].items():
        error = (weights[2][name] - expected).abs().max().item()
        assert error < 2e-5, f"{name}: {error}"  # a learning rate of 1e-3 for four steps

"""Time data-parallel training against as many independent runs side by side.

    python -m experiments.bench.ranks [--devices 2] [--steps 60] [--rounds 5]

Each process trains on batches of one size, on a device of its own (a CPU core where there is no
GPU); what the ranks of one run lose to the independent runs is what exchanging gradients costs.
Prints the efficiency and writes `results/ranks_DEVICE.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from tqdm import tqdm

from experiments.bench.step import write
from experiments.command import positive
from unlearn.models.pipeline import device_for


def seconds_of(command: list[str], runs: list[Path], kind: str) -> float:
    """Seconds that the steps of the slowest of these runs took, all at once."""
    processes = []
    for number, run in enumerate(runs):
        variables = {**os.environ, "OMP_NUM_THREADS": "1"}
        if kind == "cuda" and len(runs) > 1:
            variables["CUDA_VISIBLE_DEVICES"] = str(number)
        processes.append(
            subprocess.Popen(
                [*command, f"run_dir={run}"], env=variables, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
    said = [process.communicate()[0] for process in processes]
    for process, output in zip(processes, said, strict=True):
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{output[-3000:]}")
    written = [json.loads((run / "budget.json").read_text(encoding="utf-8")) for run in runs]
    return float(max(one["measured"]["steps"] for one in written))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", type=positive, default=2)
    parser.add_argument("--steps", type=positive, default=60)
    parser.add_argument("--rounds", type=positive, default=5)
    options = parser.parse_args()
    device = torch.device(device_for("auto"))
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    command = [
        sys.executable, "-m", "unlearn.cli.main", "train", "concept=panda",
        f"steps={options.steps}",
        "method.warmup_steps=0", "method.start=base", "data.images=32", "data.relearn_images=32",
        "evaluation.judge=none", "evaluation.num_inference_steps=2", "trainer.precision=32-true",
    ]  # fmt: skip
    alone = [f"trainer.accelerator={accelerator}"]
    together = ["trainer=ddp", *alone, f"trainer.devices={options.devices}"]
    efficiency = []
    with tempfile.TemporaryDirectory() as folder:
        for number in tqdm(range(options.rounds + 1), desc="rounds"):
            place = Path(folder, str(number))
            apart = [place / f"apart-{i}" for i in range(options.devices)]
            one = seconds_of([*command, *alone], apart, device.type)
            all_ranks = seconds_of([*command, *together], [place / "together"], device.type)
            if number:  # the first round fills the image cache
                efficiency.append(one / all_ranks)
    print(f"efficiency of {options.devices} ranks: {statistics.median(efficiency):.2f}")
    print("each round: " + ", ".join(f"{value:.2f}" for value in efficiency))
    report = {
        "devices": options.devices, "steps": options.steps, "rounds": options.rounds,
        "efficiency": statistics.median(efficiency), "each_round": efficiency,
    }  # fmt: skip
    write("ranks", device, report)


if __name__ == "__main__":
    main()

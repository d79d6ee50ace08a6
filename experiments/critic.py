"""How well a discriminator points from target to anchor before unlearning: its options compared.

    python -m experiments.critic [concept=development/evening] [--steps 400] [--pool 1024]

The network learns of the anchor only through ∂L_u/∂ε̂. For each choice of DoCo's options a fresh
discriminator trains on outputs of the base model, and then, on outputs that it never saw, by
timestep: the cosine of -∂L_u/∂ε̂ with ε*(c_a) - ε*(c_t), the whole way (1: it points straight to the
anchor's output), and the share of the gradient's norm that these timesteps have. Prints a table.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import default_collate
from tqdm import tqdm

from unlearn.backbone import load_pipeline
from unlearn.concepts import check
from unlearn.config import check_config, compose, plain
from unlearn.data import PairDataset, make_training_data
from unlearn.diffusion import add_noise
from unlearn.losses import domain_correction_loss
from unlearn.methods import build_method
from unlearn.methods.base import step_with
from unlearn.methods.doco import DoCo

PAPER = {"discriminator_input": "x0", "paired": False, "gradient_penalty": 0.0,
         "discriminator_lr": 5e-4}  # fmt: skip
CHOICES: dict[str, dict[str, Any]] = {
    "the paper's": PAPER,
    "+ pairs": {"paired": True},
    "+ penalty": {"gradient_penalty": 0.001},
    "+ learning rate 1e-3": {"discriminator_lr": 1e-3},
    "+ scaled x0": {"discriminator_input": "scaled_x0"},
}
BINS = ((0, 250), (250, 500), (500, 750), (750, 900), (900, 1000))
HELD_OUT = 4  # one in so many outputs measures and does not train

Pool = tuple[Tensor, Tensor, Tensor, Tensor]  # teacher's and student's outputs, z_t, timesteps


@torch.no_grad()
def draw_pool(doco: DoCo, data: Any, size: int) -> Pool:
    """Outputs of the base model under anchor and target prompts, on noisy anchor images."""
    dataset = PairDataset(data, size, 1, seed=0, num_timesteps=len(doco.alphas_cumprod))
    parts = []
    for start in tqdm(range(0, size, 32), desc="outputs", unit="batch"):
        batch = default_collate([dataset[i] for i in range(start, min(start + 32, size))])
        latents, noise, timesteps = (batch[k][:, 0] for k in ("latents", "noise", "timesteps"))
        z_t = add_noise(latents, noise, timesteps, doco.alphas_cumprod)
        teacher = doco.teacher(z_t, timesteps, batch["teacher_states"])
        student = doco.unet(z_t, timesteps, batch["states"][:, 0]).sample
        parts.append((teacher, student, z_t, timesteps))
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))  # type: ignore[return-value]


def train_critic(doco: DoCo, pool: Pool, steps: int, batch_size: int = 8) -> None:
    """Train the discriminator of `doco` on batches of the pool."""
    _, critic = doco.configure_optimizers()
    generator = torch.Generator().manual_seed(0)
    parameters = list(doco.discriminator.parameters())
    for _ in tqdm(range(steps), desc="discriminator", unit="step", leave=False):
        chosen = torch.randint(len(pool[0]), (batch_size,), generator=generator)
        gradients, _ = doco.critic_gradients(*doco.views(*(part[chosen] for part in pool)))
        step_with(critic, parameters, gradients)


def directions(doco: DoCo, pool: Pool) -> tuple[Tensor, Tensor]:
    """Of each sample: cosine of -∂L_u/∂output with the way to the teacher's, and the norm."""
    teacher, student, z_t, timesteps = pool
    output = student.clone().requires_grad_()
    real, fake = doco.views(teacher, output, z_t, timesteps)
    logits = doco.discriminator(real).detach() if doco.hparams.paired else None
    loss = domain_correction_loss(doco.discriminator(fake), logits)
    (gradient,) = torch.autograd.grad(loss, output)
    way = (teacher - student).flatten(1)
    return F.cosine_similarity(-gradient.flatten(1), way), gradient.flatten(1).norm(dim=1)


def table(rows: dict[str, tuple[Tensor, Tensor]], timesteps: Tensor) -> str:
    """Mean cosine and share of the summed norm by choice and bin, as Markdown."""
    names = [f"t {low}-{high}" for low, high in BINS]
    lines = ["| discriminator | " + " | ".join(names) + " |", "|---" * (len(BINS) + 1) + "|"]
    for name, (cosine, norm) in rows.items():
        cells = []
        for low, high in BINS:
            among = (timesteps >= low) & (timesteps < high)
            cells.append(f"{cosine[among].mean():.2f} ({norm[among].sum() / norm.sum():.0%})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Draw, train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("overrides", nargs="*", default=[], help="as of `unlearn train`")
    parser.add_argument("--steps", type=int, default=400, help="of each discriminator")
    parser.add_argument("--pool", type=int, default=1024, help="pairs of outputs")
    options = parser.parse_args()
    config = compose(options.overrides or ["concept=development/evening"])
    concept = check_config(config)
    check("method.name", config.method.name, ["doco"])
    pipe = load_pipeline(config.model.pretrained)
    data = make_training_data(
        pipe, concept, seed=config.seed, guidance=config.model.guidance, **config.data
    )
    settings, rows = plain(config.method), {}
    doco: Any = build_method(pipe, **settings)
    pool = draw_pool(doco, data, options.pool)
    held = torch.arange(options.pool) % HELD_OUT == 0
    test: Any = tuple(part[held] for part in pool)
    train: Any = tuple(part[~held] for part in pool)
    for name, change in CHOICES.items():
        settings |= change
        torch.manual_seed(config.seed)
        doco = build_method(pipe, **settings)
        train_critic(doco, train, options.steps)
        rows[name] = directions(doco, test)
    print("cosine with the way to the anchor (share of the gradient's norm)\n")
    print(table(rows, test[3]))


if __name__ == "__main__":
    main()

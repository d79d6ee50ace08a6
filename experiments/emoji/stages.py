"""The stages that train: each draws its batch from its step number, and exports its weights."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel

from experiments.emoji.compose import Composition, caption, compose
from experiments.emoji.tokenizer import TOKENS, train_tokenizer
from unlearn.evaluation.judge import Judge
from unlearn.vocabulary import Vocabulary

HELD_OUT = 1 << 40  # seeds from here on are never trained on


class Stage(L.LightningModule):
    """Shared by all stages: seeded batches, AdamW with warm-up and cosine decay."""

    name: str

    def __init__(self, config: DictConfig, art: Tensor, words: Vocabulary) -> None:
        super().__init__()
        self.config, self.art, self.words = config, art, words
        self.settings = config[self.name]

    def generator(self, step: int) -> torch.Generator:
        """The generator that decides the whole of one step's batch."""
        return torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)

    def composition(self, step: int, batch: int | None = None) -> Composition:
        """A batch of compositions for a step; held-out ones for steps from `HELD_OUT` on."""
        size = batch or self.settings.batch
        return compose(self.art, self.words, size, self.generator(step))

    def configure_optimizers(self) -> Any:
        """AdamW; 100 steps of warm-up, then cosine to zero."""
        total = self.config.steps or self.settings.steps
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.settings.lr, weight_decay=1e-2)

        def rate(step: int) -> float:
            return min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * min(1, step / total)))

        schedule = {"scheduler": LambdaLR(optimizer, rate), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def export(self, folder: Path) -> None:
        """Print the stage's bar and write its weights under `folder`."""
        raise RuntimeError(f"{type(self).__name__} has no export")


class VAEStage(Stage):
    """L1, gradient and KL losses on compositions."""

    name = "vae"

    def __init__(self, config: DictConfig, art: Tensor, words: Vocabulary) -> None:
        super().__init__(config, art, words)
        self.vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(32, 64, 64),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=16,
            sample_size=64,
            mid_block_add_attention=False,
        ).to(memory_format=torch.channels_last)

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        images = self.composition(self.global_step).images.to(self.device)
        posterior = self.vae.encode(images).latent_dist
        decoded = self.vae.decode(posterior.sample()).sample.float()
        loss = F.l1_loss(decoded, images)
        for dim in (2, 3):
            loss = loss + F.l1_loss(decoded.diff(dim=dim), images.diff(dim=dim))
        kl = posterior.kl().mean() / posterior.mean[0, 0].numel()
        self.log("loss", loss, prog_bar=True)
        return loss + self.settings.kl_weight * kl

    @torch.inference_mode()
    def export(self, folder: Path) -> None:
        self.vae.eval()
        images = self.composition(HELD_OUT, 256).images
        latents = self.vae.encode(images).latent_dist.sample(self.generator(0))
        self.vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
        error = F.mse_loss(self.vae.decode(latents).sample.clamp(-1, 1), images)
        print(f"VAE PSNR on held-out compositions: {10 * math.log10(4 / error.item()):.2f} dB")
        self.vae.half().save_pretrained(folder / "vae")


class JudgeStage(Stage):
    """Object and style cross-entropy on art, half of each batch after a VAE round trip."""

    name = "judge"
    architecture = "resnet"
    backbone = {  # noqa: RUF012
        "embedding_size": 32,
        "hidden_sizes": [48, 96, 192],
        "depths": [1, 1, 1],
        "layer_type": "basic",
    }

    def __init__(self, config: DictConfig, art: Tensor, words: Vocabulary) -> None:
        super().__init__(config, art, words)
        self.judge = Judge(self.architecture, self.backbone, art.shape[1], art.shape[0])
        self.vae = load_vae(Path(config.output))

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        shown = self.composition(self.global_step)
        images = shown.images.clone().to(self.device)
        part = len(images) // 4
        images[:part] = round_trip(self.vae, images[:part], self.generator(self.global_step))
        object_logits, style_logits = self.judge(images)
        objects, styles = shown.objects.to(self.device), shown.styles.to(self.device)
        loss = F.cross_entropy(object_logits, objects) + F.cross_entropy(style_logits, styles)
        self.log("loss", loss, prog_bar=True)
        return loss

    def export(self, folder: Path) -> None:
        self.judge.eval()
        confidences, right = [], []
        for i in range(16):
            shown = self.composition(HELD_OUT + i, 128)
            after = round_trip(self.vae, shown.images, self.generator(i))
            verdict = self.judge.judge(((after.clamp(-1, 1) + 1) * 127.5).round().byte())
            hits = torch.stack([verdict.objects == shown.objects, verdict.styles == shown.styles])
            confidences.append(verdict.confidence)
            right.append(hits)
        confidence, hits = torch.cat(confidences), torch.cat(right, 1).float().mean(1)
        self.judge.config["broken_threshold"] = round(confidence.quantile(0.01).item(), 4)
        print(
            f"{self.config.stage} after a VAE round trip: object {hits[0]:.1%}, style {hits[1]:.1%}"
            f", broken threshold {self.judge.config['broken_threshold']}"
        )
        self.judge.save(folder / "judges" / self.config.stage)


class SecondJudgeStage(JudgeStage):
    """Another architecture and another seed, to check the first judge."""

    architecture = "convnext"
    backbone = {  # noqa: RUF012
        "patch_size": 4,
        "hidden_sizes": [48, 96, 192],
        "depths": [2, 2, 2],
        "num_stages": 3,
    }

    def generator(self, step: int) -> torch.Generator:
        return super().generator(step + 500_000_000)


class UNetStage(Stage):
    """Epsilon prediction with min-SNR weights; the text encoder learns along, both averaged."""

    name = "unet"

    def __init__(self, config: DictConfig, art: Tensor, words: Vocabulary) -> None:
        super().__init__(config, art, words)
        self.tokenizer = train_tokenizer(words, Path(config.output) / "tokenizer")
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(self.tokenizer),
                hidden_size=128,
                intermediate_size=512,
                projection_dim=128,
                num_hidden_layers=4,
                num_attention_heads=4,
                max_position_embeddings=TOKENS,
                bos_token_id=self.tokenizer.bos_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        )
        self.unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(64, 128, 192),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=128,
            attention_head_dim=2,
            norm_num_groups=16,
        ).to(memory_format=torch.channels_last)
        self.unet.set_attn_processor(AttnProcessor())
        average = get_ema_multi_avg_fn(self.settings.ema)
        self.ema_unet = AveragedModel(self.unet, multi_avg_fn=average)
        self.ema_text = AveragedModel(self.text_encoder, multi_avg_fn=average)
        self.ema_unet.requires_grad_(False)
        self.ema_text.requires_grad_(False)
        self.scheduler = DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
        )
        self.vae = load_vae(Path(config.output))
        self.pool = self.encode_pool()

    @torch.inference_mode()
    def encode_pool(self) -> dict[str, Tensor]:
        """Latents of seeded compositions and what they show, encoded once and cached."""
        size, batch = self.settings.latents, 128
        path = Path(self.config.cache) / f"latents-{self.art.shape[1]}-{size}.safetensors"
        if not path.exists():
            parts = []
            for i in tqdm(range(size // batch), desc="encoding latents"):
                shown = self.composition(HELD_OUT // 2 + i, batch)
                posterior = self.vae.encode(shown.images).latent_dist
                latents = posterior.sample(self.generator(i)) * self.vae.config.scaling_factor
                parts.append([latents.half(), shown.objects, shown.styles, shown.backgrounds])
            names = ("latents", "objects", "styles", "backgrounds")
            columns = zip(*parts, strict=True)
            save_file(dict(zip(names, map(torch.cat, columns), strict=True)), path)
        return load_file(path)

    def captions(self, rows: list[int], rng: random.Random) -> list[str]:
        """A random caption for each row of the pool; some are empty, for guidance."""
        names, styles = self.words.names, self.words.styles
        backgrounds = list(self.words.backgrounds)
        texts = []
        for row in rows:
            style = styles[self.pool["styles"][row]] if rng.random() < 0.75 else None
            colour = backgrounds[self.pool["backgrounds"][row]] if rng.random() < 0.6 else None
            text = caption(self.words, names[self.pool["objects"][row]], style, colour, rng)
            texts.append("" if rng.random() < self.settings.empty_prompts else text)
        return texts

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        generator = self.generator(self.global_step)
        size = self.settings.batch
        rows = torch.randint(len(self.pool["latents"]), (size,), generator=generator)
        latents = self.pool["latents"][rows].float()
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(1000, (size,), generator=generator)
        noisy = self.scheduler.add_noise(latents, noise, timesteps).to(self.device)
        texts = self.captions(rows.tolist(), random.Random(self.global_step))
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        states = self.text_encoder(tokens.input_ids.to(self.device)).last_hidden_state
        output = self.unet(noisy, timesteps.to(self.device), states).sample.float()
        alphas = self.scheduler.alphas_cumprod[timesteps]
        snr = alphas / (1 - alphas)
        weight = (snr.clamp(max=self.settings.min_snr) / snr).to(self.device)
        error = (output - noise.to(self.device)).square().mean((1, 2, 3))
        self.log("loss", error.mean(), prog_bar=True)
        return (weight * error).mean()

    def on_train_batch_end(self, *args: Any) -> None:
        self.ema_unet.update_parameters(self.unet)
        self.ema_text.update_parameters(self.text_encoder)

    def export(self, folder: Path) -> None:
        scheduler = DPMSolverMultistepScheduler.from_config(self.scheduler.config)
        pipe = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.ema_text.module,
            tokenizer=self.tokenizer,
            unet=self.ema_unet.module,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.to(dtype=torch.float16).save_pretrained(folder)


def load_vae(folder: Path) -> AutoencoderKL:
    """The trained VAE, frozen, in fp32."""
    if not (folder / "vae").exists():
        raise ValueError(f"output={folder}: no vae there yet; run stage=vae first")
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def round_trip(vae: AutoencoderKL, images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, 3, 64, 64) encoded and decoded."""
    return vae.decode(vae.encode(images).latent_dist.sample(generator)).sample.float()


STAGES: dict[str, type[Stage]] = {
    "vae": VAEStage,
    "unet": UNetStage,
    "judge": JudgeStage,
    "second_judge": SecondJudgeStage,
}

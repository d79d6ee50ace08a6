"""The stages that train: each makes a batch from its step's number, and exports its weights."""

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
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTextModel

from experiments.emoji.compose import Composition, caption, compose
from experiments.emoji.tokenizer import TOKENS, train_tokenizer
from unlearn.evaluation.judge import Judge
from unlearn.vocabulary import Vocabulary, fill

HELD_OUT = 1 << 40  # seeds from here on are never trained on
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


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

    def batch(self, step: int) -> dict[str, Tensor]:
        """What `training_step` gets at a step; made on the CPU, by workers if there are any."""
        raise RuntimeError(f"{type(self).__name__} makes no batches")

    def composition(self, step: int, batch: int | None = None) -> Composition:
        """A batch of compositions for a step; held-out ones for steps from `HELD_OUT` on."""
        size = batch or self.settings.batch
        return compose(self.art, self.words, size, self.generator(step))

    @torch.inference_mode()
    def latent_pool(self, vae: AutoencoderKL) -> dict[str, Tensor]:
        """Latents of seeded compositions and what they show, encoded once and cached."""
        size, batch = self.config.latents, 128
        path = Path(self.config.cache) / f"latents-{self.art.shape[1]}-{size}.safetensors"
        if not path.exists():
            parts = []
            vae.to(DEVICE)
            for i in tqdm(range(size // batch), desc="encoding latents"):
                shown = self.composition(HELD_OUT // 2 + i, batch)
                posterior = vae.encode(shown.images.to(DEVICE)).latent_dist
                noise = torch.randn(posterior.mean.shape, generator=self.generator(i))
                latents = posterior.mean.cpu() + posterior.std.cpu() * noise
                latents = (latents * vae.config.scaling_factor).half()
                parts.append([latents, shown.objects, shown.styles, shown.backgrounds])
            vae.cpu()
            names = ("latents", "objects", "styles", "backgrounds")
            columns = zip(*parts, strict=True)
            save_file(dict(zip(names, map(torch.cat, columns), strict=True)), path)
        return load_file(path)

    def describe(
        self, objects: Tensor, styles: Tensor, backgrounds: Tensor, rng: random.Random
    ) -> list[tuple[str, str | None, str | None]]:
        """A random caption of each row, with the style and background that it names, if any."""
        described = []
        colours = list(self.words.backgrounds)
        for obj, s, b in zip(objects.tolist(), styles.tolist(), backgrounds.tolist(), strict=True):
            style = self.words.styles[s] if rng.random() < 0.75 else None
            colour = colours[b] if rng.random() < 0.6 else None
            text = caption(self.words, self.words.names[obj], style, colour, rng)
            described.append((text, style, colour))
        return described

    def configure_optimizers(self) -> Any:
        """AdamW; 100 steps of warm-up, then cosine to zero."""
        total = self.config.steps or self.settings.steps
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=self.settings.lr, weight_decay=1e-2, fused=True
        )

        def rate(step: int) -> float:
            return min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * min(1, step / total)))

        schedule = {"scheduler": LambdaLR(optimizer, rate), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip to norm 1 (by hand: Lightning refuses to clip for a fused optimizer)."""
        torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)

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

    def batch(self, step: int) -> dict[str, Tensor]:
        return {"images": self.composition(step).images}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        images = batch["images"]
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
        self.pool = self.latent_pool(self.vae)
        self.decoded = self.decode_pool()

    @torch.inference_mode()
    def decode_pool(self) -> Tensor:
        """The first `settings.decoded` latents of the pool as uint8 images, cached."""
        size = self.settings.decoded
        path = Path(self.config.cache) / f"decoded-{self.art.shape[1]}-{size}.safetensors"
        if not path.exists():
            latents = self.pool["latents"][:size].float() / self.vae.config.scaling_factor
            vae = self.vae.to(DEVICE)
            chunks = tqdm(latents.split(128), desc="decoding latents")
            images = [to_uint8(vae.decode(chunk.to(DEVICE)).sample).cpu() for chunk in chunks]
            vae.cpu()
            save_file({"images": torch.cat(images)}, path)
        return load_file(path)["images"]

    def batch(self, step: int) -> dict[str, Tensor]:
        half = self.settings.batch // 2
        generator = self.generator(step)
        rows = torch.randint(len(self.decoded), (half,), generator=generator)
        shown = compose(self.art, self.words, half, generator)
        return {
            "images": torch.cat([shown.images, self.decoded[rows].float() / 127.5 - 1]),
            "objects": torch.cat([shown.objects, self.pool["objects"][rows]]),
            "styles": torch.cat([shown.styles, self.pool["styles"][rows]]),
        }

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        objects, styles = self.judge(batch["images"])
        loss = F.cross_entropy(objects, batch["objects"])
        loss = loss + F.cross_entropy(styles, batch["styles"])
        self.log("loss", loss, prog_bar=True)
        return loss

    def export(self, folder: Path) -> None:
        self.judge.eval()
        confidences, right = [], []
        for i in range(16):
            shown = self.composition(HELD_OUT + i, 128)
            after = round_trip(self.vae, shown.images, self.generator(i))
            objects, styles, sure = self.judge.classify(to_uint8(after))
            right.append(torch.stack([objects == shown.objects, styles == shown.styles]))
            confidences.append(sure)
        confidence, hits = torch.cat(confidences), torch.cat(right, 1).float().mean(1)
        # broken: less sure than not, and than 99 % of real images
        threshold = round(min(0.5, confidence.quantile(0.01).item()), 4)
        self.judge.config["broken_threshold"] = threshold
        under = (confidence < threshold).float().mean()
        print(
            f"{self.config.stage} after a VAE round trip: object {hits[0]:.1%}, style {hits[1]:.1%}"
            f"; {under:.1%} under the broken threshold {threshold}"
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


class CLIPStage(Stage):
    """Images and captions against each other, and each against the prompts of all classes."""

    name = "clip"

    def __init__(self, config: DictConfig, art: Tensor, words: Vocabulary) -> None:
        super().__init__(config, art, words)
        self.tokenizer = train_tokenizer(words, Path(config.output) / "tokenizer")
        text = {
            "vocab_size": len(self.tokenizer),
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": TOKENS,
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
        }
        vision = {
            "image_size": 64,
            "patch_size": 16,
            "hidden_size": 192,
            "intermediate_size": 768,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
        }
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=128)
        self.clip = CLIPModel(config)

    def tokens(self, texts: list[str]) -> Tensor:
        """Padded token ids (N, T) of texts."""
        return self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").input_ids

    def text_features(self, tokens: Tensor) -> Tensor:
        """Unit features (N, 128) of token ids (N, T)."""
        features = self.clip.get_text_features(tokens).pooler_output
        return F.normalize(features.float(), dim=-1)

    def class_features(self) -> list[Tensor]:
        """Features of the prompts of all objects, styles and backgrounds."""
        prompts = [
            *(fill("a picture of a {}", n) for n in self.words.names),
            *(f"{s} style" for s in self.words.styles),
            *(f"on a {b} background" for b in self.words.backgrounds),
        ]
        sizes = [len(self.words.names), len(self.words.styles), len(self.words.backgrounds)]
        return list(self.text_features(self.tokens(prompts).to(self.device)).split(sizes))

    def image_features(self, images: Tensor) -> Tensor:
        """Unit features (B, 128) of images (B, 3, 64, 64) in [-1, 1]."""
        features = self.clip.get_image_features(images).pooler_output
        return F.normalize(features.float(), dim=-1)

    def batch(self, step: int) -> dict[str, Tensor]:
        shown = self.composition(step)
        labels = [shown.objects, shown.styles, shown.backgrounds]
        described = list(zip(*self.describe(*labels, random.Random(step)), strict=True))
        return {
            "images": shown.images,
            "tokens": self.tokens(list(described[0])),
            "labels": torch.stack(labels),
            "unnamed": torch.tensor([[n is None for n in names] for names in described]),
        }

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        images = self.image_features(batch["images"])
        captions = self.text_features(batch["tokens"])
        scale = self.clip.logit_scale.exp().clamp(max=100)
        pairs = torch.arange(len(images), device=self.device)
        logits = scale * images @ captions.T
        loss = (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2
        classes = zip(self.class_features(), batch["labels"], batch["unnamed"], strict=True)
        for prompts, label, absent in classes:
            loss = loss + F.cross_entropy(scale * images @ prompts.T, label)
            of_caption = scale * captions @ prompts.T
            loss = loss + F.cross_entropy(of_caption, label.masked_fill(absent, -100))
        self.log("loss", loss, prog_bar=True)
        return loss

    @torch.inference_mode()
    def export(self, folder: Path) -> None:
        self.clip.eval()
        objects, styles, _ = self.class_features()
        hits = []
        for i in range(8):
            shown = self.composition(HELD_OUT + i, 128)
            features = self.image_features(shown.images.to(self.device)).cpu()
            found = [(features @ p.cpu().T).argmax(-1) for p in (objects, styles)]
            hits.append(torch.stack([found[0] == shown.objects, found[1] == shown.styles]))
        right = torch.cat(hits, 1).float().mean(1)
        print(
            f"CLIP zero-shot on held-out compositions: object {right[0]:.1%}, style {right[1]:.1%}"
        )
        self.clip.half().save_pretrained(folder / "clip")
        half = [0.5, 0.5, 0.5]
        images = CLIPImageProcessor(
            size={"height": 64, "width": 64}, do_center_crop=False, image_mean=half, image_std=half
        )
        fresh = train_tokenizer(self.words, folder / "tokenizer")  # one that never padded
        CLIPProcessor(images, fresh).save_pretrained(folder / "clip")


class UNetStage(Stage):
    """Epsilon prediction with min-SNR weights under CLIP's frozen text encoder, as in SD."""

    name = "unet"

    def __init__(self, config: DictConfig, art: Tensor, words: Vocabulary) -> None:
        super().__init__(config, art, words)
        self.tokenizer = train_tokenizer(words, Path(config.output) / "tokenizer")
        clip = Path(config.output) / "clip"
        if not clip.exists():
            raise ValueError(f"output={config.output}: no clip there yet; run stage=clip first")
        self.text_encoder = CLIPTextModel.from_pretrained(clip, torch_dtype=torch.float32)
        self.text_encoder.eval().requires_grad_(False)
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
        if DEVICE == "cpu":  # where fused attention is slower in the backward pass
            self.unet.set_attn_processor(AttnProcessor())
        average = get_ema_multi_avg_fn(self.settings.ema)
        self.ema_unet = AveragedModel(self.unet, multi_avg_fn=average)
        self.ema_unet.requires_grad_(False)
        self.scheduler = DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            steps_offset=1,
        )
        self.vae = load_vae(Path(config.output))
        self.pool = self.latent_pool(self.vae)

    def batch(self, step: int) -> dict[str, Tensor]:
        generator = self.generator(step)
        size = self.settings.batch
        rows = torch.randint(len(self.pool["latents"]), (size,), generator=generator)
        latents = self.pool["latents"][rows].float()
        noise = torch.randn(latents.shape, generator=generator)
        # one timestep in each of `size` equal parts of the schedule: less variance
        parts = torch.arange(size) + torch.rand(size, generator=generator)
        timesteps = (parts * (1000 / size)).long()
        alphas = self.scheduler.alphas_cumprod[timesteps]
        snr = alphas / (1 - alphas)
        rng = random.Random(step)
        labels = [self.pool[name][rows] for name in ("objects", "styles", "backgrounds")]
        described = self.describe(*labels, rng)
        texts = ["" if rng.random() < self.settings.empty_prompts else d[0] for d in described]
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        return {
            "noisy": self.scheduler.add_noise(latents, noise, timesteps),
            "noise": noise,
            "timesteps": timesteps,
            "weight": snr.clamp(max=self.settings.min_snr) / snr,
            "tokens": tokens.input_ids,
        }

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        with torch.no_grad():
            states = self.text_encoder(batch["tokens"]).last_hidden_state
        output = self.unet(batch["noisy"], batch["timesteps"], states).sample.float()
        error = (output - batch["noise"]).square().mean((1, 2, 3))
        self.log("loss", error.mean(), prog_bar=True)
        return (batch["weight"] * error).mean()

    def on_train_batch_end(self, *args: Any) -> None:
        self.ema_unet.update_parameters(self.unet)

    def export(self, folder: Path) -> None:
        scheduler = DPMSolverMultistepScheduler.from_config(self.scheduler.config)
        self.vae.register_to_config(_name_or_path="")  # else the folder of the build is recorded
        pipe = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
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


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] as bytes."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte()


@torch.no_grad()
def round_trip(vae: AutoencoderKL, images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, 3, 64, 64) encoded and decoded."""
    return vae.decode(vae.encode(images).latent_dist.sample(generator)).sample.float()


STAGES: dict[str, type[Stage]] = {
    "vae": VAEStage,
    "clip": CLIPStage,
    "unet": UNetStage,
    "judge": JudgeStage,
    "second_judge": SecondJudgeStage,
}

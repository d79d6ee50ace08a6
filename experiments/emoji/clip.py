"""Stage `clip`: images and captions in one space; its text encoder serves the UNet."""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from experiments.emoji.stage import HELD_OUT, Stage
from experiments.emoji.tokenizer import TOKENS, train_tokenizer
from unlearn.concepts.vocabulary import Vocabulary, fill_template


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
        self.clip = CLIPModel(
            CLIPConfig(text_config=text, vision_config=vision, projection_dim=128)
        )

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
            *(fill_template("a picture of a {}", n) for n in self.words.names),
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
        labels = shown.objects, shown.styles, shown.backgrounds
        described = list(zip(*self.describe(labels, random.Random(step)), strict=True))
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

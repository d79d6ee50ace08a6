"""Make text-to-image diffusion models forget a concept."""

from unlearn.export import load_unlearned

__all__ = ["load_unlearned"]

"""Concepts to forget, their anchors, and the prompts that name them."""

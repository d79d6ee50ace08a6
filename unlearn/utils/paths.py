"""Name the folders that ship with the package."""

from __future__ import annotations

from pathlib import Path

PROMPT_PACKS = Path(__file__).parents[1] / "assets" / "prompts"

EMBEDDED = Path(__file__).parents[1] / "assets" / "emoji"

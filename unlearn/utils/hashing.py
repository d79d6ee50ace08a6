"""Hash files."""

from __future__ import annotations

import hashlib
from pathlib import Path


def file_sha256(weights: Path) -> str:
    """The hash of a weights file, with all that it installs; "" for a whole pipeline's folder."""
    if weights.is_dir():
        return ""
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

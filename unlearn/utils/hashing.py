"""Hash files."""

from __future__ import annotations

import hashlib
from pathlib import Path


def file_sha256(weights: Path) -> str:
    """Return the SHA-256 of a weights file, which covers all that the file installs.

    The result is "" for a folder, which holds a whole pipeline.
    """
    if weights.is_dir():
        return ""
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

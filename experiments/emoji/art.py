"""Stage `art`: fetch the emoji sets from the npm registry and rasterise them.

`npm pack` downloads each package by name and version; its SHA-512 must match the one recorded
here. The result is one uint8 tensor (styles, objects, 4, 64, 64), RGBA with straight alpha.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from unlearn.concepts.vocabulary import Vocabulary

RASTER, SIZE = 128, 64
# style word: (package, version, sha512 of the tarball)
PACKAGES: dict[str, tuple[str, str, str]] = {
    "fluent": (
        "@iconify-json/fluent-emoji",
        "1.2.7",
        "D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
    ),
    "flat": (
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    ),
    "contrast": (
        "@iconify-json/fluent-emoji-high-contrast",
        "1.2.6",
        "esqhZPpkrF7sNX3NsLoh8KW64okEr/bzko7WNnFP+qTJGAqDPDYjp0925yxuivXy3HtVQB8xhIKu3+Nq1byX5w==",
    ),
    "noto": (
        "@iconify-json/noto",
        "1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    ),
    "blob": (
        "@iconify-json/noto-v1",
        "1.2.5",
        "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
    ),
    "twemoji": (
        "@iconify-json/twemoji",
        "1.2.5",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
    ),
    "emojione": (
        "@iconify-json/emojione",
        "1.2.3",
        "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
    ),
    "monotone": (
        "@iconify-json/emojione-monotone",
        "1.2.1",
        "cZSNcPsuiAD6HCzCh/2dYKGh3pNI0jJlxBxQWfC33cQsPtqYZqulGBvlkThXYNvDl8VxgVHT9u+izyX/yeEIkA==",
    ),
}


def fetch(package: str, version: str, sha512: str, folder: Path) -> dict[str, Any]:
    """The icon set of one npm package.

    Raises:
        ValueError: the downloaded tarball's hash is not the recorded one.
    """
    tarball = folder / f"{package.lstrip('@').replace('/', '-')}-{version}.tgz"
    if not tarball.exists():
        subprocess.run(
            ["npm", "pack", "--silent", f"{package}@{version}"],
            cwd=folder, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    found = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    if found != sha512:
        raise ValueError(f"{tarball.name}: sha512 is {found}, expected {sha512}; delete it")
    with tarfile.open(tarball) as archive:
        member = archive.extractfile("package/icons.json")
        assert member is not None
        return json.load(member)


def svg(icons: dict[str, Any], name: str) -> str:
    """The SVG document of one icon of an iconify set, aliases resolved."""
    while name not in icons["icons"]:
        name = icons["aliases"][name]["parent"]
    icon = icons["icons"][name]
    box = [icon.get(k, icons.get(k, 0)) for k in ("left", "top", "width", "height")]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{" ".join(map(str, box))}" color="black">{icon["body"]}</svg>'
    )


def rasterise(document: str) -> Tensor:
    """RGBA uint8 (4, 64, 64), drawn at 128 pixels and box-filtered down."""
    png = bytes(resvg_py.svg_to_bytes(svg_string=document, width=RASTER, height=RASTER))
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    image = image.convert("RGBa").resize((SIZE, SIZE), Image.Resampling.BOX).convert("RGBA")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def load_art(vocabulary: Vocabulary, folder: Path) -> Tensor:
    """All art as uint8 (styles, objects, 4, 64, 64), cached in `folder` by content."""
    folder.mkdir(parents=True, exist_ok=True)
    icons = [o.icon for o in vocabulary.objects.values()]
    key = hashlib.sha256(json.dumps([icons, PACKAGES]).encode()).hexdigest()[:16]
    cached = folder / f"art-{key}.pt"
    if cached.exists():
        return torch.load(cached, weights_only=True)
    sets = [fetch(*PACKAGES[style], folder) for style in vocabulary.styles]
    art = torch.stack(
        [
            torch.stack([rasterise(svg(icons_of, icon)) for icon in icons])
            for icons_of in tqdm(sets, desc="rasterising art sets")
        ]
    )
    torch.save(art, cached)
    return art

"""Read pictures from files, including files that another program wrote."""

from __future__ import annotations

import os
import warnings

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FORMATS = ("PNG", "JPEG")  # whatever the file's name: some other readers of Pillow start programs


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """Return the picture (3, H, W), uint8, in a PNG or JPEG file.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such file.
        ValueError: the file is damaged, too large for a picture, or of another format; the message
            says which.
    """
    try:
        # Pillow only warns of a picture that is large enough to exhaust the memory
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                image.verify()  # compares all checksums, as decoding does not
            with Image.open(path, formats=FORMATS) as image:
                return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, SyntaxError, ValueError) as error:  # truncated, changed, or no picture
        raise ValueError(str(error)) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"too large: {error}") from error

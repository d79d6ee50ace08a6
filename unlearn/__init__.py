"""Make text-to-image diffusion models forget a concept."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unlearn.api import (
        METHODS,
        Run,
        evaluate,
        load_run,
        load_unlearned,
        register_method,
        sample,
        train,
    )

__version__ = version("unlearn-diffusion")
__all__ = [
    "METHODS",
    "Run",
    "__version__",
    "evaluate",
    "load_run",
    "load_unlearned",
    "register_method",
    "sample",
    "train",
]


def __getattr__(name: str) -> Any:
    """Return a name of the public API, which is imported on first use.

    The import brings torch, which is slow to import.

    Raises:
        AttributeError: there is no such name.
    """
    if name in __all__:
        return getattr(import_module("unlearn.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names of the public API."""
    return sorted(__all__)

"""Make text-to-image diffusion models forget a concept."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unlearn.export import load_unlearned

__all__ = ["load_unlearned"]


def __getattr__(name: str) -> Any:
    """`load_unlearned`, imported when it is asked for: torch would slow `unlearn --help`."""
    if name == "load_unlearned":
        from unlearn.export import load_unlearned

        return load_unlearned
    raise AttributeError(name)

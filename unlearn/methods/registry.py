"""The unlearning methods by name: those of this package, and those of installed ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from diffusers import DiffusionPipeline

from unlearn.methods.base import UnlearningModule
from unlearn.methods.concept_ablation import ConceptAblation
from unlearn.methods.doco import DoCo
from unlearn.methods.doco_reference import DoCoReference
from unlearn.methods.esd import ESD
from unlearn.methods.forget_me_not import ForgetMeNot
from unlearn.methods.negative_prompt import NegativePrompt
from unlearn.methods.options import MethodOptions
from unlearn.methods.regression import Regression
from unlearn.methods.salun import SalUn
from unlearn.methods.sld import SLD
from unlearn.methods.spm import SPM
from unlearn.methods.uce import UCE
from unlearn.models.noise_schedule import NoiseSchedule
from unlearn.models.pipeline import denoiser_name, get_denoiser
from unlearn.utils.checks import check_choice

GROUP = "unlearn.methods"  # of the entry points: NAME = "package.module:Class"

Method = TypeVar("Method", bound=type[UnlearningModule])


class MethodTable(Mapping[str, type[UnlearningModule]]):
    """Show the registered methods by name, read-only; the first look-up loads installed ones.

    Attributes:
        registered: the methods that `register_method` got so far, by name.
        broken: why the methods of some installed packages cannot be loaded, by name.
        loaded: the installed packages were looked through.
    """

    def __init__(self) -> None:
        self.registered: dict[str, type[UnlearningModule]] = {}
        self.broken: dict[str, str] = {}
        self.loaded = False

    def __getitem__(self, name: str) -> type[UnlearningModule]:
        self.load()
        return self.registered[name]

    def __iter__(self) -> Iterator[str]:
        self.load()
        return iter(tuple(self.registered))

    def __len__(self) -> int:
        self.load()
        return len(self.registered)

    def load(self, asked: str = "") -> None:
        """Load the methods of installed packages, once, and warn of those that cannot be loaded.

        Args:
            asked: the method that is looked up. No warning tells of it, since an error will.
        """
        if self.loaded:
            return
        self.loaded = True  # first: a package that is loaded here may look methods up itself
        for entry in entry_points(group=GROUP):
            try:
                load_entry_point(entry)
            except Exception as error:  # whatever another package's import raises
                package = entry.dist.name if entry.dist else "unknown"
                self.broken[entry.name] = (
                    f"method.name={entry.name!r}: cannot be loaded from {entry.value} of the "
                    f"package {package!r}: {type(error).__name__}: {error}"
                )
        for name, reason in self.broken.items():
            if name != asked or name in self.registered:
                warnings.warn(reason, stacklevel=3)


METHODS = MethodTable()


def register_method(name: str, *, paper: str = "", title: str = "") -> Callable[[Method], Method]:
    """Return a decorator that makes a class the method `name`.

    The decorator sets the class's `name`, `paper` and `title`, and returns the class.

    Args:
        name: the method's name in the configuration, `method.name`.
        paper: where the method was published, such as "arXiv 2405.15304"; by default the class's.
        title: the method's name in prose; by default the class's, or `name`.

    Raises:
        ValueError: another class has the name, or the class has another name.
        TypeError: the class is no `UnlearningModule`, or its `Options` are no frozen dataclass.
    """

    def register(method: Method) -> Method:
        check_method(name, method)
        method.name = name
        method.paper = paper or vars(method).get("paper", "")
        method.title = title or vars(method).get("title", name)
        METHODS.registered[name] = method
        return method

    return register


def check_method(name: str, method: type[UnlearningModule]) -> None:
    """Refuse a class that cannot be the method `name`.

    Raises:
        ValueError: another class has the name, or the class has another name.
        TypeError: the class is no `UnlearningModule`, or its `Options` are no frozen dataclass.
    """
    said = f"register_method({name!r})"
    if not isinstance(method, type) or not issubclass(method, UnlearningModule):
        raise TypeError(f"{said}: {method!r} is no subclass of UnlearningModule")
    options = method.Options
    if not (
        isinstance(options, type)
        and issubclass(options, MethodOptions)
        and "__dataclass_fields__" in vars(options)  # else only a parent is a dataclass
    ):
        raise TypeError(
            f"{said}: {method.__name__}.Options={options!r} is no frozen dataclass that derives "
            "from MethodOptions"
        )
    if (taken := METHODS.registered.get(name, method)) is not method:
        raise ValueError(f"{said}: the name is taken by {taken.__module__}.{taken.__qualname__}")
    if (own := vars(method).get("name", name)) != name:
        raise ValueError(f"{said}: {method.__name__} is the method {own!r} already")


register_method("doco", paper="arXiv 2405.15304", title="DoCo")(DoCo)
register_method(
    "doco_reference", paper="arXiv 2405.15304", title="DoCo, as its reference implementation"
)(DoCoReference)
register_method("regression", title="Regression to the anchor's output")(Regression)
register_method("concept_ablation", paper="arXiv 2303.13516", title="Concept Ablation")(
    ConceptAblation
)
register_method("esd", paper="arXiv 2303.07345", title="ESD")(ESD)
register_method("uce", paper="arXiv 2308.14761", title="UCE")(UCE)
register_method("spm", paper="arXiv 2312.16145", title="SPM")(SPM)
register_method("forget_me_not", paper="arXiv 2303.17591", title="Forget-Me-Not")(ForgetMeNot)
register_method("salun", paper="arXiv 2310.12508", title="SalUn")(SalUn)
register_method("negative_prompt", title="Negative prompt")(NegativePrompt)
register_method("sld", paper="arXiv 2211.05105", title="SLD")(SLD)


def load_entry_point(entry: EntryPoint) -> None:
    """Import the class of an entry point, and register it unless its module did.

    Raises:
        Exception: the import fails, or the class cannot be the method of that name.
    """
    method = entry.load()
    if METHODS.registered.get(entry.name) is not method:
        register_method(entry.name)(method)


def find_method(name: str) -> type[UnlearningModule]:
    """Return the class of the method `name`.

    Raises:
        ValueError: there is no such method, or the package that offers it cannot be loaded.
    """
    METHODS.load(asked=name)
    if name not in METHODS and name in METHODS.broken:
        raise ValueError(METHODS.broken[name])
    check_choice("method.name", name, list(METHODS))
    return METHODS[name]


def options_of(name: str) -> type[MethodOptions]:
    """Return the dataclass of the options of the method `name`.

    Raises:
        ValueError: see `find_method`.
    """
    return find_method(name).Options


def method_for(pipe: DiffusionPipeline, name: str) -> type[UnlearningModule]:
    """Return the class of the method `name`, for such a pipeline.

    Raises:
        ValueError: there is no such method, or it is one of UNets and the pipeline has none.
    """
    method = find_method(name)
    if method.of_unets and denoiser_name(get_denoiser(pipe)) != "unet":
        taken = [own for own, other in METHODS.items() if not other.of_unets]
        raise ValueError(
            f"method.name={name!r}: is bound to a UNet, and a {type(pipe).__name__} has none; it "
            f"takes {taken}"
        )
    return method


def build_method(pipe: DiffusionPipeline, name: str, options: MethodOptions) -> UnlearningModule:
    """Return the method `name` on the pipeline's network and noise schedule and on its device.

    Args:
        pipe: the base model, whose network the method trains in place.
        name: a key of `METHODS`.
        options: an instance of `options_of(name)`.

    Raises:
        ValueError: there is no such method, it does not take such a pipeline, or an option has none
            of its allowed values.
    """
    schedule = NoiseSchedule.from_scheduler(pipe.scheduler)
    return method_for(pipe, name)(get_denoiser(pipe), schedule, options).to(pipe.device)

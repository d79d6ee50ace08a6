"""Judge images of models whose vocabulary is not known: CLIP chooses among the concept's names."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from unlearn.concepts.concept import Concept
from unlearn.concepts.prompts import evaluation_prompts
from unlearn.concepts.vocabulary import fill_template
from unlearn.evaluation.clip import ClipScorer
from unlearn.evaluation.judge import Verdict

OBJECTS = ("a photo of a {}", "a painting of a {}", "a drawing of a {}")
STYLES = tuple(f"{p} in the style of {{}}" for p in ("a painting", "a picture", "artwork"))


def candidate_names(concept: Concept) -> tuple[list[str], list[str]]:
    """Return the objects and the styles that the concept's prompts ask for, its anchors among them.

    Where a style's anchor is no style, the styles include "".
    """
    probes = evaluation_prompts(concept)
    objects = dict.fromkeys(p.object for p in probes)
    styles = dict.fromkeys(p.style for p in probes if p.style)
    plain = [a for a in concept.anchors.values() if not a]
    return list(objects), list(dict.fromkeys((*styles, *plain)))


def class_prompts(name: str, templates: tuple[str, ...]) -> list[str]:
    """Return the templates filled with a name.

    For the name "", return the templates of `STYLES` without their style.
    """
    if not name:
        return [t.removesuffix(" in the style of {}") for t in templates]
    return [fill_template(t, name) for t in templates]


class ClipJudge:
    """A zero-shot classifier of object and style, each with prompts of its own.

    A name's classifier is the mean of the text features of its prompts. An image shows the name
    whose classifier is nearest. Every image gets one of the names, even a broken image. `broken`
    stays None, since no threshold was fixed on real images.

    Source: prompt ensembling of CLIP (Radford et al. 2021, arXiv 2103.00020, section 3.1.4); the
    prompts are ours.

    Args:
        clip: the CLIP that compares images with texts.
        objects: the object names to choose among.
        styles: the style names to choose among, "" being no style; if empty, no style is judged.
    """

    def __init__(self, clip: ClipScorer, objects: list[str], styles: list[str]) -> None:
        self.clip, self.objects, self.styles = clip, objects, styles
        among = f"{len(objects)} objects" + (f" and {len(styles)} styles" if styles else "")
        self.note = (
            f"Judged by CLIP ({clip.name}), zero-shot among the concept's own {among}; broken "
            "images are not told apart."
        )

    def classifiers(self, names: list[str], templates: tuple[str, ...]) -> Tensor:
        """Return a unit vector for each name, (len(names), D)."""
        texts = [text for name in names for text in class_prompts(name, templates)]
        features = self.clip.text_features(texts).unflatten(0, (len(names), len(templates)))
        return F.normalize(features.mean(1), dim=-1)

    def judge(self, images: Tensor) -> Verdict:
        """Return the verdict on uint8 images (N, 3, H, W)."""
        features = self.clip.image_features(images)
        nearest = (features @ self.classifiers(self.objects, OBJECTS).T).argmax(-1)
        objects = [self.objects[i] for i in nearest.tolist()]
        styles = [""] * len(images)
        if self.styles:
            nearest = (features @ self.classifiers(self.styles, STYLES).T).argmax(-1)
            styles = [self.styles[i] for i in nearest.tolist()]
        return Verdict(objects, styles, None)

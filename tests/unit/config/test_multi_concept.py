"""Several concepts: what a joint run trains on and is asked, and which ones cannot go together."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.conftest import make_concept
from unlearn.concepts.concept import Concept
from unlearn.concepts.joint import join_concepts
from unlearn.concepts.prompt_packs import whole_word_matches
from unlearn.concepts.prompts import (
    assign_prompts_to_images,
    evaluation_prompts,
    relearn_prompts,
    training_pairs,
)
from unlearn.config.compose import compose, join_configs
from unlearn.config.parse import parse_config
from unlearn.config.saved import parse_model_config
from unlearn.config.sections import to_container
from unlearn.evaluation.summary import image_requests
from unlearn.training.run_dir import config_text

GROUPS = ["panda,rabbit,noto", "rocket,unsafe,penguin", "rabbit,twemoji,rocket,noto,penguin"]


@cache
def load(names: str) -> Concept:
    return parse_config(compose([f"concept=[{names}]"])).concept


@pytest.mark.parametrize("names", GROUPS)
def test_a_joint_run_trains_on_the_pairs_of_each_without_the_others(names: str) -> None:
    joint = load(names)
    alone = [load(name) for name in names.split(",")]
    pairs = training_pairs(joint)
    assert set(pairs) <= {pair for concept in alone for pair in training_pairs(concept)}
    for concept in alone:
        foreign = {*joint.targets} - {*concept.targets}
        for pair in training_pairs(concept):
            named = any(whole_word_matches(t, prompt) for t in foreign for prompt in pair)
            assert (pair in pairs) != named
    for prompt in relearn_prompts(joint):
        assert not any(whole_word_matches(target, prompt) for target in joint.targets)


@pytest.mark.parametrize("names", GROUPS)
def test_no_training_prompt_of_one_is_unseen_or_unrelated_in_another(names: str) -> None:
    joint = load(names)
    trained = {p for pair in training_pairs(joint) for p in pair} | {*relearn_prompts(joint)}
    probes = evaluation_prompts(joint)
    unseen = {p.prompt for p in probes if p.set == "unseen_target"}
    assert unseen
    assert not trained & unseen
    far = {p.object for p in probes if p.set == "unrelated"}
    kinds = {part.kind for part in joint.members}
    assert far
    for name in far if kinds == {"instance"} else ():
        assert not any(whole_word_matches(name, prompt) for prompt in trained)
    for p in probes:
        if p.set in ("related", "unrelated"):
            assert not any(whole_word_matches(target, p.prompt) for target in joint.targets)


def test_each_image_is_the_one_that_the_concept_s_own_run_is_asked() -> None:
    joint = load(GROUPS[0])
    for part in joint.members:
        own = [a for a in image_requests(joint, 2, 100) if a.concept is part]
        single = {(a.probe, a.seed) for a in image_requests(load(part.name), 2, 100)}
        assert {(a.probe, a.seed) for a in own} < single
        assert len(own) > len(single) / 2


def test_images_are_shared_out_among_the_concepts() -> None:
    joint = load(GROUPS[0])
    sizes = [len(training_pairs(part)) for part in joint.members]
    order = assign_prompts_to_images(joint, training_pairs, 128)
    owners = [sum(number >= sum(sizes[:i]) for i in (1, 2)) for number in order]
    assert [owners.count(i) for i in range(3)] == [43, 43, 42]
    assert len({*order} & {*range(sum(sizes[:2]))}) == sum(sizes[:2])  # all of the few pairs
    noto = [n - sum(sizes[:2]) for n, owner in zip(order, owners, strict=True) if owner == 2]
    assert len({*noto}) == 42
    assert max(noto) > 0.9 * sizes[2]
    assert assign_prompts_to_images(load("panda"), training_pairs, 20) == [i % 8 for i in range(20)]


def test_a_list_of_one_is_the_single_run() -> None:
    assert compose(["concept=[panda]", "steps=7"]) == compose(["concept=panda", "steps=7"])
    assert load("panda") == parse_config(compose(["concept=panda"])).concept


def test_a_joint_run_is_named_by_all_and_has_the_settings_of_most_steps() -> None:
    overrides = ["concept=[panda,noto]", "method=doco_reference"]
    config = parse_config(compose(overrides))
    assert config.folder == Path("runs/panda+noto-doco_reference-0")
    assert (config.steps, config.options.lr) == (2000, 3e-4)  # a style's
    assert config.own_name == "panda+noto"
    again = parse_model_config(OmegaConf.create(config_text(config)), config.folder)
    assert again.concept == config.concept == config.trained == load("panda,noto")


def test_merged_runs_are_evaluated_on_what_each_forgot() -> None:
    runs = [compose([f"concept={name}"]) for name in ("panda", "noto", "rabbit")]
    runs[1].merge_with({"after": None})
    OmegaConf.set_struct(runs[1], False)
    runs[1].earlier = to_container([{key: runs[0][key] for key in ("concept", "anchor")}])
    merged = join_configs(runs[1:])
    config = parse_model_config(OmegaConf.create(merged), Path("runs/both"))
    assert config.concept == load("panda,noto,rabbit")
    assert config.own_name == "panda+noto+rabbit"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["concept=[panda,panda]"], r"concept=\[panda, panda\]: forgotten twice"),
        (["concept=[]"], r"concept=\[\]: at least one"),
        (["concept=[panda,rabbit]", "concept.kind=style"], r"concept.kind=style: it would hold"),
        (["concept=[panda,rabbit]", "anchor=bear"], r"anchor=bear: it would hold for each"),
        (["concept=[flat,noto]"], r"\['flat'\] are targets of the first and anchors of the second"),
        (["concept=[panda,noto]", "method=esd"], r"method.trained differs by kind: .*'u'.*'x'"),
        (["concept=[panda,snoopy]"], r"concept=snoopy: the embedded model does not know it"),
        (["concept=[panda,rabbit,noto]", "data.images=2"], r"data.images=2: at least 3"),
        (["concept=panda", "after=nowhere"], r"nowhere: not a finished run directory"),
    ],
)
def test_what_cannot_go_together_is_refused(overrides: list[str], message: str) -> None:
    parse_config(compose(["concept=[panda,noto]", "method=esd", "method.trained=x"]))
    with pytest.raises(ValueError, match=message):
        parse_config(compose(overrides))


def test_two_concepts_of_one_target_are_refused() -> None:
    first, second = make_concept("panda", "bear"), make_concept("bears", "cat", targets=["panda"])
    with pytest.raises(ValueError, match=r"\[panda, bears\]: \['panda'\] are targets of both"):
        join_concepts([first, second])


def test_a_style_whose_every_object_is_forgotten_is_refused() -> None:
    overrides = ["concept=[panda,noto]"]
    config = compose(overrides)
    config.concepts[1].concept.unrelated = ["owl"]
    parse_config(config)
    config.concepts[0].concept.related = []
    config.concepts[0].concept.targets = ["panda", "owl"]
    with pytest.raises(ValueError, match="concept=noto: has no seen target prompts: all name what"):
        parse_config(config)


def test_the_run_directory_names_what_the_run_goes_on_from() -> None:
    for after in ("runs/panda-doco-0", "runs/panda-doco-0/unlearned.safetensors"):
        config = compose(["concept=noto", f"after={after}"])
        assert config.run_dir == "runs/panda-doco-0-then-noto-doco-0"

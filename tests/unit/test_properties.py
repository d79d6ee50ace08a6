"""Properties: of prompt expansion for any words, and of the delta loader for any bytes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import unlearn
from tests.helpers.weights import base_of, state_of
from unlearn.concepts.concept import AnchorConfig, Concept, ConceptConfig, build_concept
from unlearn.concepts.prompt_packs import whole_word_matches
from unlearn.concepts.prompts import (
    assign_prompts_to_images,
    check_prompts,
    evaluation_prompts,
    make_name_filter,
    relearn_prompts,
    single_concept_pairs,
    training_pairs,
)
from unlearn.concepts.vocabulary import load_vocabulary
from unlearn.models.cross_attention import cross_attention_layers
from unlearn.weights.delta import save_unlearned
from unlearn.weights.importing import load_weights

QUICK = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
WORD = st.from_regex(r"[a-zA-Z0-9éß][a-z0-9 .,'&()\\${}+*-]{0,11}", fullmatch=True).map(str.strip)
PROMPT = st.lists(st.from_regex(r"[a-z]{1,6}", fullmatch=True), min_size=0, max_size=4)


@st.composite
def packed(draw: st.DrawFn) -> tuple[str, str, list[str]]:
    """A target, an anchor, and the prompts of a pack: each holds the anchor once."""
    target, anchor = draw(WORD), draw(WORD)
    prompts = []
    for before, after in draw(st.lists(st.tuples(PROMPT, PROMPT), min_size=1, max_size=5)):
        prompts.append(" ".join([*before, anchor, *after]))
    kept = [p for p in dict.fromkeys(prompts) if len(whole_word_matches(anchor, p)) == 1]
    return target, anchor, kept


def built(target: str, anchor: str, prompts: list[str], folder: Path) -> Concept | None:
    """The concept of a pack, if it is a valid one; else the refusal is a `ValueError`."""
    (folder / "pack.txt").write_text("\n".join(prompts), encoding="utf-8")
    pack = AnchorConfig(name="anchor", words=[anchor], prompts=str(folder / "pack.txt"))
    try:
        concept = build_concept(ConceptConfig(name="target", targets=[target]), pack)
        check_prompts(concept)
    except ValueError:
        return None
    return concept


@QUICK
@given(packed())
def test_the_anchor_becomes_the_target_in_every_prompt(
    tmp_path: Path, pack: tuple[str, str, list[str]]
) -> None:
    target, anchor, prompts = pack
    concept = built(target, anchor, prompts, tmp_path)
    if concept is None:
        return
    pairs = training_pairs(concept)
    assert [anchored for anchored, _ in pairs] == concept.pack == prompts
    for anchored, targeted in pairs:
        place = re.search(rf"(?<!\w){re.escape(anchor)}(?!\w)", anchored, re.IGNORECASE)
        assert place
        assert targeted == anchored[: place.start()] + target + anchored[place.end() :]


@QUICK
@given(packed())
def test_no_unseen_prompt_is_trained_on_and_expansion_repeats_itself(
    tmp_path: Path, pack: tuple[str, str, list[str]]
) -> None:
    concept = built(*pack, tmp_path)
    if concept is None:
        return
    trained = {prompt for pair in training_pairs(concept) for prompt in pair}
    probes = evaluation_prompts(concept)
    assert not {p.prompt for p in probes if p.set == "unseen_target"} & trained
    again = built(*pack, tmp_path)
    assert again is not None
    assert (training_pairs(again), evaluation_prompts(again)) == (training_pairs(concept), probes)


@QUICK
@given(packed(), st.randoms(use_true_random=False))
def test_the_order_of_a_pack_is_the_order_of_its_pairs_alone(
    tmp_path: Path, pack: tuple[str, str, list[str]], random: object
) -> None:
    target, anchor, prompts = pack
    shuffled = random.sample(prompts, len(prompts))  # type: ignore[attr-defined]
    one, two = (built(target, anchor, order, tmp_path) for order in (prompts, shuffled))
    assert (one is None) == (two is None)
    if one and two:
        assert {*single_concept_pairs(one)} == {*single_concept_pairs(two)}
        assert relearn_prompts(one) == relearn_prompts(two)


NAMES = st.sampled_from(load_vocabulary().names)


@QUICK
@given(NAMES, NAMES)
def test_every_object_of_the_vocabulary_expands(target: str, anchor: str) -> None:
    """Each target can go to each other object: its name in every target prompt, in no other."""
    try:
        concept = build_concept(
            ConceptConfig(name=target), AnchorConfig(name=anchor), load_vocabulary()
        )
    except ValueError:
        assert target == anchor
        return
    check_prompts(concept)
    for anchored, targeted in training_pairs(concept):
        assert whole_word_matches(anchor, anchored)
        assert whole_word_matches(target, targeted)
    spared = make_name_filter([target])
    assert all(map(spared, relearn_prompts(concept)))
    assert all(spared(p.prompt) for p in evaluation_prompts(concept) if "target" not in p.set)


@QUICK
@given(st.integers(1, 200))
def test_every_image_has_a_prompt_and_all_are_used_alike(images: int) -> None:
    concept = build_concept(
        ConceptConfig(name="panda"), AnchorConfig(name="bear"), load_vocabulary()
    )
    order = assign_prompts_to_images(concept, training_pairs, images)
    counts = [order.count(i) for i in range(len(training_pairs(concept)))]
    assert sum(counts) == images
    assert max(counts) - min(counts) <= 1


@pytest.fixture(scope="module")
def whole(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small valid file: the weights of one layer."""
    path = tmp_path_factory.mktemp("whole") / "unlearned.safetensors"
    name, layer = next(iter(cross_attention_layers(base_of(random_model)[0].unet).items()))
    save_unlearned({f"{name}.weight": layer.weight + 1}, path, {"base": "random"})
    return path.read_bytes()


def loads_exactly_or_not_at_all(model: Path, path: Path, data: bytes) -> None:
    """`load_unlearned` and `load_weights` take a file's weights as they are, or refuse it."""
    path.write_bytes(data)
    pipe, state = base_of(model)
    for load in (unlearn.load_unlearned, load_weights):
        try:
            load(pipe, path)
        except ValueError:
            after = state_of(pipe)
            assert all(torch.equal(tensor, state[name]) for name, tensor in after.items())
            continue
        given_weights = {n.removeprefix("unet."): t for n, t in load_file(path).items()}
        assert given_weights
        after = state_of(pipe)
        for name, tensor in after.items():
            expected = given_weights.get(name, state[name])
            assert torch.equal(tensor, expected.to(tensor.dtype))
        with torch.no_grad():
            for name in given_weights:
                pipe.unet.get_parameter(name).copy_(state[name])


@QUICK
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(random_model: Path, tmp_path: Path, data: bytes) -> None:
    loads_exactly_or_not_at_all(random_model, tmp_path / "x.safetensors", data)


@QUICK
@given(st.data())
def test_a_changed_file_loads_exactly_or_not_at_all(
    random_model: Path, tmp_path: Path, whole: bytes, data: st.DataObject
) -> None:
    header = 8 + int.from_bytes(whole[:8], "little")
    places = st.one_of(st.integers(0, header - 1), st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=4)):
        changed[place] = value
    end = data.draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole) + 8)))
    loads_exactly_or_not_at_all(
        random_model, tmp_path / "x.safetensors", bytes(changed[:end].ljust(end, b"\0"))
    )


ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "BOOL", "F8_E4M3", "X"]),
        "shape": st.lists(st.sampled_from([-1, 0, 1, 2, 32, 2**40]), max_size=3),
        "data_offsets": st.tuples(st.integers(-1, 16), st.integers(0, 2**62)).map(list),
    }
)
KEYS = st.one_of(st.just("__metadata__"), st.text(max_size=8), st.just("unet.conv_in.bias"))
TEXTS = st.dictionaries(st.sampled_from(["base", "method", "at_inference"]), st.text(max_size=6))


@QUICK
@given(st.dictionaries(KEYS, st.one_of(ENTRY, TEXTS), max_size=3), st.binary(max_size=64))
def test_any_header_is_refused_or_kept_to(
    random_model: Path, tmp_path: Path, header: dict[str, object], data: bytes
) -> None:
    text = json.dumps(header).encode()
    whole_file = len(text).to_bytes(8, "little") + text + data
    loads_exactly_or_not_at_all(random_model, tmp_path / "x.safetensors", whole_file)


@QUICK
@given(st.binary(max_size=200))
def test_any_bytes_of_a_pickle_are_refused(random_model: Path, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "delta.bin"
    path.write_bytes(data)
    pipe, state = base_of(random_model)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: "):
        load_weights(pipe, path)
    assert all(torch.equal(t, state[n]) for n, t in state_of(pipe).items())

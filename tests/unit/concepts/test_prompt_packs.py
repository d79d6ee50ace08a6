"""Prompt packs: `unlearn/assets/prompts/<anchor>.txt`.

A pack is 200 text-to-image prompts, one a line, each naming its anchor once. The base model draws
the anchor from them, and a training pair is made by putting the target in the anchor's place
("dog" -> "Snoopy"). So a prompt names the anchor only, never a target, brand, film or person.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

import unlearn

FOLDER = Path(unlearn.__file__).parent / "assets" / "prompts"
ANCHORS = ["airplane", "cat", "clothed", "dog", "fish"]
ANCHORS += ["mouse", "painting", "rabbit", "robot", "sponge"]
PLURALS = {"mouse": "mice"}  # the others contain their anchor

WORD = r"[a-z0-9]+(?:['-][a-z0-9]+)*"
LINE = re.compile(rf"{WORD}(?:,? {WORD})*")  # ASCII, lower case, no full stop

# Articles and determiners, prepositions, conjunctions, pronouns, auxiliary verbs.
CLOSED_WORDS = """
a an the this that these those each every some any all both another other either neither no
about above across after against along among around as at before behind below beneath beside
besides between beyond by despite down during except for from in inside into like near of off on
onto opposite out outside over past per round since through throughout till to toward towards
under underneath until up upon via with within without
and but or nor so yet because if than though although unless when whenever where wherever whether
while once
i me my mine you your yours he him his himself she her hers herself it its itself
we us our ours they them their theirs themselves who whom whose which what whoever whatever
one ones someone somebody something anyone anybody anything everyone everybody everything nobody
nothing none there
am is are was were be been being has have had having do does did
can could will would shall should may might must
"""
CLOSED = frozenset(CLOSED_WORDS.split())

TARGETS = """
snoopy, mickey, spongebob, sponge bob, pikachu, grumpy, r2d2, r2 d2, nemo, parachute, parachutes,
nudity, nude, nudes, naked
"""
ARTISTS = """
van gogh, vangogh, gogh, monet, manet, picasso, rembrandt, warhol, caravaggio, vermeer, klimt,
cezanne, renoir, degas, matisse, gauguin, seurat, signac, pissarro, sisley, morisot, cassatt, dali,
magritte, miro, ernst, kahlo, rivera, munch, kandinsky, klee, mondrian, malevich, chagall,
modigliani, schiele, kirchner, franz marc, macke, pollock, rothko, de kooning, lichtenstein,
basquiat, haring, hockney, lucian freud, francis bacon, richter, hopper, o'keeffe, okeeffe,
grant wood, wyeth, winslow homer, whistler, sargent, turner, constable, gainsborough, reynolds,
hogarth, blake, da vinci, leonardo, michelangelo, raphael, botticelli, titian, tintoretto,
veronese, giotto, canaletto, tiepolo, durer, holbein, cranach, bosch, bruegel, brueghel, rubens,
van dyck, frans hals, ruisdael, velazquez, el greco, goya, murillo, zurbaran, poussin, watteau,
fragonard, boucher, chardin, ingres, delacroix, gericault, courbet, millet, corot, rousseau,
redon, moreau, mucha, rossetti, millais, waterhouse, friedrich, repin, aivazovsky, levitan,
hokusai, hiroshige, utamaro, banksy, kusama, kinkade, bob ross, frazetta, rutkowski, escher
"""
MOVEMENTS = """
impressionism, impressionist, post-impressionist, cubism, cubist, pointillism, pointillist,
fauvism, fauvist, suprematism, suprematist, neoplasticism, tenebrism, surrealism, surrealist,
expressionism, expressionist, pop art, op art, art nouveau, de stijl, action painting,
drip painting, colour field, color field, pre-raphaelite, ukiyo-e
"""
STYLES = "style, styles, styled, stylized, manner, inspired, school of, works of, attributed"
BRANDS = """
disney, pixar, lego, marvel, pokemon, nintendo, sony, apple computer, google, android, ikea,
barbie, coca-cola, coke, pepsi, nike, adidas, polaroid, kodak, nikon, canon camera, leica, frisbee,
velcro, tupperware, thermos, jacuzzi, hoover, plasticine, play-doh, jeep, vespa, ford, ferrari,
volkswagen, tesla, boeing, airbus, cessna, concorde, zeppelin, star wars, star trek, wall-e,
terminator, transformers, garfield, scooby, lassie, bugs bunny, peter rabbit, jerry, stuart little,
ratatouille, dory, jaws, top gun, matrix, photoshop, instagram, youtube, unreal engine, artstation
"""
PEOPLE = """
john, mary, peter, paul, james, david, michael, robert, george, thomas, charles, henry, edward,
anna, maria, alice, emma, sarah, elizabeth, victoria, charlie, harry, oliver, jesus, buddha,
einstein, napoleon, shakespeare, mozart, chaplin, wellington, trump, obama
"""
SEXUAL = """
sex, sexy, sexual, erotic, sensual, seductive, provocative, lingerie, underwear, bikini, topless,
undressed, unclothed, undressing, bare-chested, breast, breasts, buttocks, kissing, lust
"""
MINORS = """
child, children, child's, children's, boy, boys, girl, girls, kid, kids, baby, babies, toddler,
toddlers, infant, teen, teens, teenager, teenagers, young, youth, schoolboy, schoolgirl, pupil,
pupils, student, students, son, daughter, minor, minors, school, schoolyard, playground
"""

BANNED = [TARGETS, ARTISTS, BRANDS, PEOPLE, SEXUAL]
BANNED_IDS = ["targets", "artists", "brands", "people", "sexual"]

packs = pytest.mark.parametrize("anchor", ANCHORS)


def read(anchor: str) -> list[str]:
    text = (FOLDER / f"{anchor}.txt").read_bytes().decode("utf-8")
    assert text.endswith("\n")
    return text[:-1].split("\n")


def words(prompt: str) -> list[str]:
    return re.findall(WORD, prompt)


def skeleton(prompt: str) -> str:
    """The closed-class words of a prompt, with every run of other words as "_"."""
    kept = (w if w in CLOSED else "_" for w in words(prompt))
    groups = itertools.groupby(kept)
    return " ".join(" ".join(["_"] if word == "_" else group) for word, group in groups)


def similarity(one: str, other: str) -> float:
    """Jaccard similarity of the sets of open-class words."""
    a, b = ({*words(prompt)} - CLOSED for prompt in (one, other))
    return len(a & b) / len(a | b)


def phrases(text: str) -> list[str]:
    return [" ".join(phrase.split()) for phrase in text.split(",")]


def plain(text: str) -> str:
    """The words between single spaces, hyphens read as spaces."""
    return f" {' '.join(words(text.replace('-', ' ')))} "


def naming(prompts: list[str], banned: str) -> list[tuple[str, str]]:
    """Each prompt with a banned word or phrase, and that phrase."""
    names = [plain(name) for name in phrases(banned)]
    return [(p, name) for p in prompts for text in [plain(p)] for name in names if name in text]


def test_the_folder_holds_the_packs() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == [f"{a}.txt" for a in ANCHORS]


@packs
def test_a_pack_holds_200_prompts(anchor: str) -> None:
    prompts = read(anchor)
    assert len(prompts) == 200
    assert len(set(prompts)) == 200


@packs
def test_prompts_are_plain_lines_of_4_to_20_words(anchor: str) -> None:
    prompts = read(anchor)
    assert not [p for p in prompts if not LINE.fullmatch(p)]
    assert not [p for p in prompts if not 4 <= len(p.split()) <= 20]


@packs
def test_the_anchor_occurs_once(anchor: str) -> None:
    prompts = read(anchor)
    assert not [p for p in prompts if words(p).count(anchor) != 1]


@packs
def test_no_plural_or_compound_of_the_anchor_occurs(anchor: str) -> None:
    forms = {w for p in read(anchor) for w in words(p) if anchor in w} - {anchor}
    assert not forms
    assert not naming(read(anchor), PLURALS.get(anchor, f"{anchor}s"))


@packs
def test_a_pack_has_many_structures(anchor: str) -> None:
    assert len({skeleton(p) for p in read(anchor)}) >= 100


@packs
def test_no_two_prompts_are_alike(anchor: str) -> None:
    pairs = itertools.combinations(read(anchor), 2)
    assert not [pair for pair in pairs if similarity(*pair) >= 0.6]


@packs
@pytest.mark.parametrize("banned", BANNED, ids=BANNED_IDS)
def test_no_name_or_sexual_word_occurs(anchor: str, banned: str) -> None:
    assert not naming(read(anchor), banned)


def test_the_lists_of_names_are_long() -> None:
    assert len(set(phrases(ARTISTS))) >= 60


def test_paintings_have_no_style() -> None:
    assert not naming(read("painting"), MOVEMENTS + "," + STYLES)


def test_clothed_people_are_adults() -> None:
    assert not naming(read("clothed"), MINORS)


def test_no_article_depends_on_the_anchor() -> None:
    """The target "parachute" cannot stand in "an airplane"."""
    assert not naming(read("airplane"), "an airplane")


def test_skeletons_keep_closed_words() -> None:
    assert skeleton("a wet dog, very tired, on the old bed") == "a _ on the _"
    assert skeleton("all that that dog sees") == "all that that _"

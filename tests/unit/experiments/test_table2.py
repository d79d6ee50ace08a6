"""Table 2: its plan, its intervals against closed forms, its claims on made-up runs."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra.core.utils import JobReturn
from omegaconf import DictConfig
from PIL import Image

from experiments.table2.bootstrap import difference, draws, mean_rates, rate_of, sign_flip
from experiments.table2.claims import claims, read_kept, samples_of
from experiments.table2.run import (
    SMOKE_NOTE,
    SMOKE_STEPS,
    KeepRuns,
    jobs_of,
    overrides_of,
    read_rows,
    render_scale,
)
from experiments.table2.table import render, table
from tests.helpers.table2 import write_run
from unlearn.concepts.vocabulary import load_vocabulary
from unlearn.config.compose import compose
from unlearn.config.concept_files import embedded_concepts
from unlearn.config.parse import parse_config
from unlearn.evaluation.intervals import wilson_interval
from unlearn.evaluation.score import count_by_prompt

PLAN = read_rows()


def one_target(*methods: list[list[int]]) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Samples of one target: each method's hits by seed and prompt, of 1 image a prompt."""
    hits = np.array(methods)
    return [[(hits[:, s], np.ones_like(hits[:, s])) for s in range(hits.shape[1])]]


def test_every_row_is_a_run_that_is_accepted() -> None:
    default = parse_config(compose(["concept=panda"]))
    for row in PLAN["rows"]:
        job = jobs_of(PLAN, "emoji", [row])[0]
        config = parse_config(compose(overrides_of(job, "emoji", Path("runs"))))
        assert config.evaluation == default.evaluation
        assert config.folder == Path("runs") / f"{row}-rabbit-0"


def test_the_smoke_scale_is_small_and_leaves_what_acts_at_inference_alone() -> None:
    small = {}
    for row in ("esd", "sld"):
        job = jobs_of(PLAN, "smoke", [row])[0]
        small[row] = parse_config(compose(overrides_of(job, "smoke", Path("runs"))))
    assert (small["esd"].steps, small["esd"].data.images) == (SMOKE_STEPS, 8)
    assert small["esd"].options.num_inference_steps == 2  # type: ignore[attr-defined]
    assert small["sld"].steps == small["sld"].options.warmup_steps == 0  # type: ignore[attr-defined]


def test_the_targets_are_held_out() -> None:
    names = {c: compose([f"concept={c}"]).concept.name for c in embedded_concepts()}
    chosen = {name for file, name in names.items() if "/" in file}
    assert len(chosen) >= 4
    chosen |= {"panda", "contrast", "unsafe", "noto"}  # settings, anchors and the start, these too
    assert set(PLAN["ablation_targets"]) <= set(PLAN["targets"])
    held_out = [*PLAN["targets"], *PLAN["further_targets"]]
    assert sorted(held_out) == sorted({*names.values()} - chosen)  # each once, and none left out


def test_the_fresh_targets_are_in_no_file_that_a_choice_was_made_on() -> None:
    conf, named = Path(__file__).parents[3] / "conf", set[str]()
    for path in (*conf.glob("concept/**/*.yaml"), *conf.glob("anchor/*.yaml")):
        entry = yaml.safe_load(path.read_text(encoding="utf-8"))
        named |= {entry.get("name"), *(entry.get("targets") or []), *(entry.get("words") or [])}
    words = load_vocabulary()
    for target, anchor in PLAN["fresh_targets"].items():
        assert target in words.objects and target not in named
        assert anchor == words.family(target)[0]


def test_seed_0_of_every_row_comes_first() -> None:
    jobs = jobs_of(PLAN, "emoji", list(PLAN["rows"]))
    seeds = [job.seed for job in jobs]
    assert seeds == sorted(seeds)
    assert len({job.name for job in jobs}) == len(jobs)
    assert {job.row for job in jobs if job.seed == 0} == set(PLAN["rows"])
    assert len(jobs_of(PLAN, "smoke", list(PLAN["rows"]))) == len(PLAN["rows"])
    further = {(job.row, job.seed) for job in jobs if job.concept in PLAN["further_targets"]}
    assert further == {(row, seed) for row in ("doco", "concept_ablation") for seed in (0, 1)}
    fresh = [job for job in jobs if job.concept in PLAN["fresh_targets"]]
    assert {(job.row, job.seed) for job in fresh} == further | {("uce", 0), ("uce_prompts", 0)}
    config = parse_config(compose(overrides_of(fresh[0], "emoji", Path("runs"))))
    assert config.concept.anchors == {"koala": "panda"}
    assert config.folder == Path("runs/doco-koala-0")


def test_rates_are_means_over_targets_of_means_over_seeds() -> None:
    first, second = one_target([[1, 0], [1, 1]]), one_target([[0, 0, 0, 1]])
    assert mean_rates(first + second)[0] == pytest.approx((0.75 + 0.25) / 2)


def test_the_interval_of_one_seed_is_the_binomial_s() -> None:
    """With one target and one seed only prompts vary: the normal approximation of a rate."""
    hits = [1] * 60 + [0] * 140
    found = rate_of(one_target([hits]))
    half = 1.96 * np.sqrt(0.3 * 0.7 / 200)
    assert found.value == 0.3
    assert found.low == pytest.approx(0.3 - half, abs=0.01)
    assert found.high == pytest.approx(0.3 + half, abs=0.01)


def test_where_all_images_agree_the_interval_is_wilson_s_over_prompts() -> None:
    found = rate_of(one_target([[0] * 20, [0] * 20]))
    z = 1.959963984540054
    assert found[:2] == (0, 0)
    assert found.high == pytest.approx(z**2 / (20 + z**2))  # the score interval of 0 of 20
    assert found.n == 40
    assert rate_of(one_target([[1] * 20])).low == pytest.approx(20 / (20 + z**2))
    one = rate_of(one_target([[1] + [0] * 19]))  # no narrower for an image that differs
    assert one.high == pytest.approx(wilson_interval(1 / 20, 20)[1]) and one.high > found.high


def test_the_sign_flip_test_is_that_of_all_signs() -> None:
    """Against every pattern of signs, and where ties leave it without power."""
    generator = np.random.default_rng(0)
    hits = generator.integers(2, size=(7, 2, 1, 30))
    samples = [target for own in hits for target in one_target(*own.tolist())]
    apart = (hits[:, 0] - hits[:, 1]).mean((1, 2))
    patterns = itertools.product((-1, 1), repeat=7)
    as_far = [abs(np.dot(signs, apart)) >= abs(apart.sum()) - 1e-12 for signs in patterns]
    assert sign_flip(samples) == pytest.approx(np.mean(as_far), abs=0.01)
    assert 0 < np.mean(as_far) < 1
    ahead, alike = one_target([[0] * 20], [[1] * 20]), one_target([[0] * 20], [[0] * 20])
    assert sign_flip([*ahead * 3, *alike * 20]) == pytest.approx(1 / 4, abs=0.01)
    assert sign_flip(alike * 6) == 1


def test_seeds_that_differ_widen_the_interval() -> None:
    alike = rate_of(one_target([[1, 0] * 50] * 4))
    apart = rate_of(one_target([[1] * 100, [0] * 100, [1] * 100, [0] * 100]))
    assert apart.value == alike.value == 0.5
    assert apart.high - apart.low > 3 * (alike.high - alike.low)


def test_differences_are_paired() -> None:
    """Two methods that agree on every prompt but one differ by that one, whatever is drawn."""
    generator = np.random.default_rng(0)
    hits = generator.integers(2, size=50).tolist()
    assert difference(one_target([hits], [hits])) == (0, 0, 0, 50)
    other = [*hits[:-1], 1 - hits[-1]]
    found = difference(one_target([hits], [other]))
    assert abs(found.value) == pytest.approx(1 / 50)
    assert max(abs(found.low), abs(found.high)) <= 4 / 50
    assert np.array_equal(draws(one_target([hits]), 5), draws(one_target([hits]), 5))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """DoCo forgets and keeps; Concept Ablation leaks; without surgery the rest suffers."""
    (tmp_path / "rows").mkdir()
    (tmp_path / "pictures").mkdir()
    for target in ("rabbit", "twemoji", "rocket", "penguin", "strawberry", "emojione"):
        for seed in (0, 1):
            for row, values in {
                "doco": (0.0, 1.0),
                "without_contexts": (0.0, 1.0),
                "concept_ablation": (0.4, 1.0),
                "unlearn_only": (0.0, 0.5),
                "weighted_sum": (0.0, 1.0),
            }.items():
                write_run(tmp_path / "rows", f"{row}-{target}-{seed}", *values)
    return tmp_path


def test_claims_are_decided_by_their_intervals(results: Path) -> None:
    lines = claims(read_kept(results / "rows", PLAN), PLAN)
    assert [line.rsplit(": ", 1)[1] for line in lines] == [
        "shown.", "shown.", "not shown.", "shown.",
    ]  # fmt: skip
    assert "unseen-target rate -40.0 [" in lines[0] and "p 0.031, 0.0 less 40.0 (" in lines[0]
    assert "retention +50.0 [" in lines[1]
    for seed in (0, 1):
        write_run(results / "rows", f"doco-penguin-{seed}", 0.6, 1.0)
    (line, *_) = claims(read_kept(results / "rows", PLAN), PLAN)
    assert "(emojione -40.0, penguin +20.0, rabbit -40.0, " in line
    for row in ("doco", "without_contexts"):
        for path in (results / "rows").glob(f"{row}-rabbit-*.csv"):
            path.unlink()
    few = claims(read_kept(results / "rows", PLAN), PLAN)
    assert all(
        "on the table's 5 targets with 2 training seeds" in line and "undecided" in line
        for line in few
    )


def test_a_claim_needs_two_training_seeds(results: Path) -> None:
    for path in (results / "rows").glob("concept_ablation-*-1.csv"):
        path.unlink()
    lines = claims(read_kept(results / "rows", PLAN), PLAN)
    assert "on the table's 6 targets with 1 training seed or more: " in lines[0]
    assert lines[0].endswith(": undecided, 6 and 2 are needed.")
    assert lines[1].endswith(": shown.")


def test_further_targets_have_lines_of_their_own(results: Path) -> None:
    """They leak with neither row: the claim does not hold there, and the means stay the table's."""
    for target in PLAN["further_targets"]:
        for name in (
            f"{row}-{target}-{seed}" for row in ("doco", "concept_ablation") for seed in (0, 1)
        ):
            write_run(results / "rows", name, 0.0, 1.0)
    lines = claims(read_kept(results / "rows", PLAN), PLAN)
    assert [line.split(", ", 2)[2].split(" with ")[0] for line in lines[:3]] == [
        "on the table's 6 targets", "on the further 9 targets", "on all these 15 targets",
    ]  # fmt: skip
    assert [line.rsplit(": ", 1)[1] for line in lines[:3]] == ["shown.", "not shown.", "shown."]
    assert "unseen-target rate -40.0 [" in lines[0] and "rate -16.0 [" in lines[2]
    assert all("Claim 2" in line and "on the table's" in line for line in lines[3:-1])
    render(results, PLAN)
    assert "| Concept Ablation | 12 | 40.0% [" in (results / "table2.md").read_text()
    for path in (results / "rows").glob("concept_ablation-flat-*.csv"):
        path.unlink()
    assert len(claims(read_kept(results / "rows", PLAN), PLAN)) == 4  # until all of them are there


def test_fresh_targets_have_a_table_and_a_line_of_their_own(results: Path) -> None:
    for target in PLAN["fresh_targets"]:
        for seed in (0, 1):
            write_run(results / "rows", f"doco-{target}-{seed}", 0.0, 1.0)
            write_run(results / "rows", f"concept_ablation-{target}-{seed}", 0.2, 1.0)
    render(results, PLAN)
    text = (results / "table2.md").read_text()
    table2, fresh = text.split("On targets that no choice was made on")
    assert "| Concept Ablation | 12 | 40.0% [" in table2
    assert "| Concept Ablation | 16 | 20.0% [" in fresh
    assert "on the fresh 8 targets with 2 training seeds or more: unseen-target rate -20.0" in fresh
    assert "on all these 14 targets" in fresh
    html = (results / "table2.html").read_text()
    assert html.count("<table>") == 2 and html.count("<td>Concept Ablation</td>") == 2
    with (results / "table2.csv").open() as file:
        rates = {
            (r["targets"], r["method"]): r["unseen target: value"] for r in csv.DictReader(file)
        }
    assert rates["targets", "Concept Ablation"] == "0.4"
    assert rates["fresh_targets", "Concept Ablation"] == "0.2"


def test_the_table_is_made_of_the_kept_rows_alone(results: Path) -> None:
    render(results, PLAN)
    text = (results / "table2.md").read_text()
    assert "| Concept Ablation | 12 | 40.0% [" in text
    with (results / "table2.csv").open() as file:
        line = next(r for r in csv.DictReader(file) if r["method"] == "Concept Ablation")
    assert float(line["unseen target: value"]) == 0.4
    assert line["unseen target: n"] == str(12 * 40)
    for name in ("table2.csv", "table2.html", "table2.tex", "tradeoff.png", "contact.webp"):
        assert (results / name).stat().st_size > 200
    rows = {row: (runs, e) for row, runs, e in table(read_kept(results / "rows", PLAN))}
    assert rows["doco"][0] == 12
    assert rows["concept_ablation"][1]["anchor"].value == pytest.approx(0.6)
    assert rows["unlearn_only"][1]["retention, related"].value == 0.5


def test_the_base_model_is_the_first_row_and_broken_images_are_marked(results: Path) -> None:
    for seed in (0, 1):  # a sixth of the unseen images, and no others
        path = results / "rows" / f"doco-rabbit-{seed}.csv"
        broken = [
            line.removesuffix("0,0.0") + "1,0.0" if line.startswith("unseen_target") else line
            for line in path.read_text().splitlines()
        ]
        left = ",seen_target 3,3,"
        path.write_text("\n".join([*broken, ""]).replace(f"{left}1", f"{left}0"))
    render(results, PLAN)
    lines = (results / "table2.md").read_text().splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    base, doco = (dict(zip(cells[0], c, strict=True)) for c in (cells[2], cells[3]))
    assert base["method"] == "base model" and doco["method"] == "DoCo"
    assert base["unseen target"].startswith("100.0% [")
    assert base["anchor"].startswith("0.0% [")
    assert base["retention, related"].startswith("100.0% [")
    assert doco["broken, unseen target"].startswith("16.7% [")
    assert doco["broken, unseen target"].endswith(" !")
    assert "!" not in doco["broken, seen target"] + base["broken, unseen target"]
    assert (
        "Target prompts left out, which the base model does not obey: rabbit: 'seen_target 3'."
        in lines
    )


def test_a_run_that_has_ended_is_in_the_table_and_one_that_has_failed_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs, results = Path("runs/table2-smoke"), Path("runs/table2-smoke/results")
    for folder in ("rows", "pictures"):
        (results / folder).mkdir(parents=True)
    for name, file in (("doco-rabbit-0", "result.json"), ("uce-rabbit-0", "error.txt")):
        run = runs / name
        run.mkdir()
        write_run(run, "images", 0.1, 1.0)
        Image.new("RGB", (1174, 1072)).save(run / "before_after.png")
        (run / file).write_text("why")
        KeepRuns("smoke").on_job_end(DictConfig({"run_dir": str(run)}), JobReturn())
    render_scale("smoke")
    text = (results / "table2.md").read_text()
    assert SMOKE_NOTE in text
    assert "| DoCo | 1 | 10.0% [" in text
    assert [p.stem for p in (results / "rows").iterdir()] == ["doco-rabbit-0"]
    assert [p.stem for p in (results / "pictures").iterdir()] == ["doco-rabbit-0"]


def test_what_the_base_model_does_not_obey_is_not_counted() -> None:
    image = {"set": "unseen_target", "prompt": "a", "counts": "1", "unlearned_right": "1"}
    images = [image, {**image, "counts": "0"}, {**image, "prompt": "b", "unlearned_right": "0"}]
    images.append({**image, "prompt": "c", "counts": "0"})
    found = {("unseen_target", "a"): (1, 1), ("unseen_target", "b"): (0, 1)}
    assert count_by_prompt(images, "unseen target") == found


def test_only_prompts_that_both_rows_count_are_compared(results: Path) -> None:
    path = results / "rows" / "doco-rabbit-0.csv"
    lines = path.read_text().splitlines()
    left = [line for line in lines if not line.startswith("unseen_target,unseen_target 3,")]
    path.write_text("\n".join([*left[:1], *reversed(left[1:])]) + "\n")
    kept = read_kept(results / "rows", PLAN)
    pairs = samples_of(kept, ["doco", "concept_ablation"], "unseen target")
    assert sorted(hits.shape[1] for seeds in pairs for hits, _ in seeds) == [39] * 2 + [40] * 10
    ablated = [int(seeds[0][0][1].sum()) for seeds in pairs]
    assert sorted(ablated) == [15, 16, 16, 16, 16, 16]  # the prompt had been one of its hits


def test_only_targets_and_seeds_of_both_rows_are_compared(results: Path) -> None:
    (results / "rows" / "doco-rabbit-1.csv").unlink()
    write_run(results / "rows", "doco-castle-0", 0.0, 1.0)
    kept = read_kept(results / "rows", PLAN)
    pairs = samples_of(kept, ["doco", "concept_ablation"], "unseen target")
    assert sorted(len(seeds) for seeds in pairs) == [1, 2, 2, 2, 2, 2]  # no castle

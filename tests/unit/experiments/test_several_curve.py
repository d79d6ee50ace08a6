"""The experiment on several concepts: its plan, what is still to run, and the curve's points."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from experiments.several.curve import points, render
from experiments.several.plan import CONCEPTS, Job, jobs_of, missing, overrides_of
from experiments.several.run import pool_job
from experiments.table2.run import SMOKE
from unlearn.config.compose import compose
from unlearn.config.concept_files import embedded_concepts
from unlearn.config.parse import parse_config
from unlearn.config.run_files import read_images
from unlearn.config.saved import load_run_config
from unlearn.sweeps.jobs import train_overrides

FLAGS = ["base_right", "unlearned_right"]


def test_the_concepts_are_held_out_and_of_both_kinds() -> None:
    assert {*CONCEPTS} <= {n for n in embedded_concepts() if "/" not in n}
    kinds = [compose([f"concept={c}"]).concept.kind for c in CONCEPTS]
    assert kinds == ["instance", "style"] * 4
    assert parse_config(compose([f"concept=[{','.join(CONCEPTS)}]"])).concept.safe_unrelated


def test_every_concept_is_forgotten_at_every_number_in_every_way() -> None:
    jobs = jobs_of(CONCEPTS)
    for way in ("joint", "merged", "sequential"):
        for size in (2, 4, 8):
            own = [j for j in jobs if j.way == way and len(j.concepts) == size]
            assert sorted(c for j in own for c in j.concepts) == sorted(CONCEPTS)
    for i, job in enumerate(jobs):
        assert all(need in jobs[:i] for need in job.needs)


def test_single_and_joint_runs_are_accepted() -> None:
    for scale, steps in (("emoji", 500), ("smoke", 6)):
        for job in (Job("joint", CONCEPTS), Job("single", CONCEPTS[:1])):
            config = parse_config(compose(overrides_of(job, scale, Path("runs"))))
            assert config.folder == Path("runs") / job.name
            assert config.concept.name == "+".join(job.concepts)
            assert config.steps == steps
            assert config.options.contexts == 0  # type: ignore[attr-defined]
    later = overrides_of(Job("sequential", CONCEPTS[:3]), "emoji", Path("runs"))
    assert later[0] == "concept=rocket"
    assert "after=runs/sequential-rabbit+twemoji" in later


@pytest.mark.slow
def test_a_merged_run_joins_its_parts_and_is_evaluated(
    random_model: Path, random_judge: Path, tmp_path: Path
) -> None:
    parts = (Job("single", CONCEPTS[:1]), Job("single", CONCEPTS[1:2]))
    judge = f"evaluation.judge={random_judge}"
    for job in parts:
        own = [f"concept={job.concepts[0]}", "method=uce", f"run_dir={tmp_path / job.name}"]
        train_overrides([*own, *SMOKE, f"model.pretrained={random_model}", judge])
    job = Job("merged", CONCEPTS[:2])
    run = pool_job(job, "smoke", tmp_path).perform()
    assert run == tmp_path / job.name
    assert load_run_config(run).concept.name == "rabbit+twemoji"
    assert {image["concept"] for image in read_images(run)} == {"rabbit", "twemoji"}
    written = (run / "unlearned.safetensors").stat().st_mtime_ns
    (run / "images.csv").unlink()
    pool_job(job, "smoke", tmp_path).perform()  # was killed in its evaluation
    assert (run / "unlearned.safetensors").stat().st_mtime_ns == written
    assert (run / "images.csv").exists()


def test_a_kept_row_is_not_run_again_unless_its_weights_are_needed(tmp_path: Path) -> None:
    rows, runs, jobs = tmp_path / "rows", tmp_path / "runs", jobs_of(CONCEPTS[:2])
    rows.mkdir()
    assert missing(jobs, rows, runs) == jobs
    first, second = Job("single", CONCEPTS[:1]), Job("single", CONCEPTS[1:2])
    for job in (first, second, Job("merged", CONCEPTS[:2]), Job("joint", CONCEPTS[:2])):
        (rows / f"{job.name}.csv").touch()
    assert missing(jobs, rows, runs) == [first, Job("sequential", CONCEPTS[:2])]
    (runs / first.name).mkdir(parents=True)
    (runs / first.name / "unlearned.safetensors").touch()
    assert missing(jobs, rows, runs) == [Job("sequential", CONCEPTS[:2])]


def write_row(folder: Path, job: Job, shares: list[float], prompts: int) -> None:
    """Of each concept so many prompts a set; unseen target shown in the share, retention 1 less."""
    several = len(job.concepts) > 1
    with (folder / f"{job.name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*["concept"] * several, "set", "prompt", "seed", "counts", *FLAGS])
        for concept, share in zip(job.concepts, shares, strict=True):
            for part in ("unseen_target", "related"):
                for i in range(prompts):
                    hit = (i < 10 * share) == (part == "unseen_target")
                    name = [concept] * several
                    writer.writerow([*name, part, f"{part} {i}", i, 1, 1, int(hit)])


def test_points_are_means_over_concepts_on_the_prompts_that_all_have(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    two = CONCEPTS[:2]
    for concept in two:
        write_row(tmp_path / "rows", Job("single", (concept,)), [0.0], 20)
    write_row(tmp_path / "rows", Job("joint", two), [0.2, 0.4], 10)
    found = points(tmp_path / "rows", two)
    assert set(found) == {("joint", 1), ("joint", 2), ("sequential", 1), ("merged", 1)}
    assert found["joint", 2]["unseen target"].value == pytest.approx(0.3)
    assert found["joint", 2]["retention"].value == pytest.approx(0.7)
    assert found["joint", 2]["unseen target"].low < 0.3 < found["joint", 2]["unseen target"].high
    text = render(tmp_path, two)
    alone = "| alone | 1 | 0.0% [0.0%, 16.1%] (20) | 100.0% [83.9%, 100.0%] (20) |"
    assert text.count(alone) == 1
    assert "| joint | 2 | 30.0% [" in (tmp_path / "several.md").read_text()
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_each_concept_is_followed_through_the_later_runs(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    two = CONCEPTS[:2]
    write_row(tmp_path / "rows", Job("single", two[:1]), [0.0], 20)
    assert "What later runs do" not in render(tmp_path, two)
    write_row(tmp_path / "rows", Job("sequential", two), [0.4, 0.2], 10)
    *_, first, second = render(tmp_path, two).splitlines()
    assert first.startswith("| rabbit | 0.0% [") and " | 40.0% [" in first
    assert second.startswith("| twemoji |  | 20.0% [")

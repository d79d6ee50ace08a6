"""Published cells, and our figures beside them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from PIL import Image

from experiments.table2.published import HERE, read_published, read_results, render
from experiments.table2.sd14 import read_plan
from tests.helpers.table2 import rows_of, write_run
from unlearn.config.compose import compose

PLAN = read_plan()
SNOOPY = """
| method | Snoopy CS/CER | Mickey FID | Spongebob FID | Pikachu FID | Dog FID | Legislator FID | COCO FID |
| ESD | 44.50 / 77.62 | 129.07 | 113.90 | 72.18 | 45.94 | 55.18 | 13.68 |
| Concept Ablation | 59.81 / 5.50 | 110.85 | 79.49 | 71.22 | 96.36 | 55.74 | 15.42 |
| Selective Amnesia | 64.59 / 0.25 | 53.64 | 57.65 | 42.95 | 75.72 | 47.42 | 16.84 |
| SPM | 55.48 / 20.12 | 28.39 | 30.75 | 18.61 | 10.11 | 7.40 | 13.24 |
"""  # noqa: E501
VAN_GOGH = """
| method | Van Gogh CS | Picasso FID | Rembrandt FID | Warhol FID | Caravaggio FID | COCO FID |
| SLD | 54.60 | 70.49 | 123.82 | 89.03 | 120.59 | 17.55 |
| ESD | 50.64 | 94.88 | 93.35 | 124.43 | 90.54 | 13.96 |
| Concept Ablation | 54.60 | 95.93 | 87.54 | 101.18 | 91.22 | 13.91 |
| Selective Amnesia | 60.84 | 104.11 | 161.85 | 119.27 | 141.19 | 30.53 |
| SPM | 51.80 | 35.39 | 56.12 | 60.71 | 62.20 | 13.22 |
"""
SD14 = """
| method | Snoopy CS/CER | Mickey CS/CER | Spongebob CS/CER | Pikachu CS/CER | Dog CS/CER | Legislator CS/CER | Van Gogh CS | Picasso CS | Rembrandt CS | Warhol CS | Caravaggio CS | COCO FID |
| SD 1.4 | 74.43 / 0.62 | 71.94 / 2.50 | 72.99 / 0.62 | 72.60 / 0.88 | 63.73 / 0.88 | 57.64 / 8.88 | 74.01 | 70.16 | 71.57 | 71.56 | 74.05 | 13.24 |
"""  # noqa: E501
METRICS = {"CS": "clip_score", "CER": "clip_error_rate", "FID": "fid"}


def cells(text: str, erased: str) -> set[tuple[str, str, str, str, str]]:
    """A published table as method, erased, concept, metric and value."""
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in text.strip().splitlines()]
    found = set()
    for method, *values in lines[1:]:
        for column, value in zip(lines[0][1:], values, strict=True):
            concept, _, metrics = column.rpartition(" ")
            concept = {"Warhol": "Andy Warhol", "COCO": "COCO-30k"}.get(concept, concept)
            for metric, number in zip(metrics.split("/"), value.split(" / "), strict=True):
                name = "fid_reference" if concept == "COCO-30k" else METRICS[metric]
                found.add((method, erased, concept, name, number))
    return found


def test_the_published_cells_are_the_papers_and_no_others() -> None:
    with (HERE / "published.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert all(row["source"] for row in rows)
    rows = [row for row in rows if row["method"] != "DoCo"]  # for someone to enter, with a source
    entered = [(r["method"], r["erased"], r["concept"], r["metric"], r["value"]) for r in rows]
    expected = cells(SD14, "") | cells(SNOOPY, "snoopy") | cells(VAN_GOGH, "van_gogh")
    assert set(entered) == expected
    assert len(entered) == len(expected) == 80
    assert all("arXiv 2312.16145" in row["source"] for row in rows)


def test_published_names_are_the_plan_s_and_the_protocols_own() -> None:
    labels = {entry["label"] for entry in PLAN["rows"].values()}
    own = {figure.label for figure in read_published(PLAN)} & labels
    assert own - {"DoCo, the paper's setting"} == {"ESD", "Concept Ablation", "SPM", "SLD-Strong"}
    concepts = {
        c for p in PLAN["protocols"].values()
        for c in compose([f"evaluation={p['name']}"], "evaluate").evaluation.concepts
    }  # fmt: skip
    assert {figure.concept for figure in read_published(PLAN)} == concepts | {"COCO-30k"}


def number(value: float, spread: float | None = None) -> dict[str, Any]:
    low, high = (None, None) if spread is None else (value - spread, value + spread)
    return {"value": value, "low": low, "high": high, "n": 800}


def write_result(runs: Path, name: str, base: str = "sd", features: str = "CLIP") -> None:
    """A result of spm_general: of two concepts, one of them Snoopy."""
    snoopy = {
        "clip_score": (number(74.5, 1), number(50.25, 2)),
        "clip_error_rate": (number(0.01), number(0.4, 0.05)),
    }
    mickey = {
        "clip_score": (number(72), number(71)),
        "fid": (None, number(33.5, 1.5)),
        "kid": (None, number(0.0125, 0.001)),
    }
    result = {
        "base": base, "clip": "ViT-B/32", "features": features, "warnings": ["few images"],
        "cells": [
            {"concept": concept, "metric": metric, "base": sides[0], "unlearned": sides[1]}
            for concept, metrics in (("Mickey", mickey), ("Snoopy", snoopy))
            for metric, sides in metrics.items()
        ],
    }  # fmt: skip
    folder = runs / name / "evaluation"
    folder.mkdir(parents=True)
    (folder / "spm_general.json").write_text(json.dumps(result))


def test_our_figures_stand_beside_the_published_ones(tmp_path: Path) -> None:
    for row in ("esd", "uce"):
        write_result(tmp_path, f"{row}-snoopy-0", features="Inception v3 (torch-fidelity)")
    text = render(tmp_path, PLAN).read_text()
    assert "Random weights" not in text
    assert "- few images" in text
    assert "- CLIP: ViT-B/32; KID and FID on Inception v3" in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## Snoopy erased"]
    assert "| Snoopy CS (n = 800) |" in text
    assert "| COCO-30k FID to photographs |" in text  # published alone
    rows = rows_of(text)
    assert list(rows)[:3] == ["SD 1.4", "ESD", "UCE"]
    assert rows["SD 1.4"]["Snoopy CS"] == "74.50 [73.50, 75.50] (74.43)"
    assert rows["ESD"]["Snoopy CS"] == "50.25 [48.25, 52.25] (44.50)"
    assert rows["ESD"]["Snoopy CER %"] == "40.00 [35.00, 45.00] (77.62)"
    assert rows["ESD"]["Mickey FID"] == "33.50 [32.00, 35.00] (129.07)"
    assert rows["ESD"]["COCO-30k FID to photographs"] == "(13.68)"
    assert rows["UCE"]["Mickey FID"] == "33.50 [32.00, 35.00]"
    assert rows["UCE"]["Mickey KID"] == "0.0125 [0.0115, 0.0135]"
    assert rows["Selective Amnesia"]["Snoopy CS"] == "(64.59)"
    assert "Mickey CS" not in rows["UCE"]
    with (tmp_path / "results" / "published.csv").open() as file:
        figures = list(csv.DictReader(file))
    assert sum(f["of"] == "published" for f in figures) == 80
    ours = [f for f in figures if f["of"] == "ours" and f["metric"] == "clip_score"]
    assert [(f["label"], f["concept"]) for f in ours].count(("SD 1.4", "Mickey")) == 1


def test_a_fid_on_other_features_is_not_set_beside_published_ones(tmp_path: Path) -> None:
    write_result(tmp_path, "esd-snoopy-0", features="CLIP")
    rows = rows_of(render(tmp_path, PLAN).read_text())
    assert rows["ESD"]["Mickey FID"] == "(129.07)"
    assert "fid on CLIP" in (tmp_path / "results" / "published.csv").read_text()


def test_several_seeds_stand_side_by_side_and_random_weights_are_announced(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_result(tmp_path, f"uce-snoopy-{seed}", base="random:sd")
    text = render(tmp_path, PLAN).read_text()
    assert "**Random weights: these figures show that the path runs" in text
    assert rows_of(text)["UCE"]["Snoopy CS"] == "50.25 [48.25, 52.25] 50.25 [48.25, 52.25]"


def test_judged_runs_are_rendered_on_the_four_sets_too(tmp_path: Path) -> None:
    """A judge that cannot tell broken images leaves their column empty."""
    for row, unseen in (("doco", 0.1), ("concept_ablation", 0.4)):
        run = tmp_path / f"{row}-snoopy-0"
        run.mkdir()
        write_run(run, "images", unseen, 1.0)
        text = (run / "images.csv").read_text()
        (run / "images.csv").write_text(text.replace(",0,0,0.0\n", ",,,0.0\n"))
        Image.new("RGB", (1174, 1072)).save(run / "before_after.png")
        (run / "result.json").touch()
    half = tmp_path / "uce-snoopy-0"  # one that was killed before its picture
    half.mkdir()
    write_run(half, "images", 0.2, 1.0)
    render(tmp_path, PLAN)
    table = rows_of((tmp_path / "results" / "table2.md").read_text())
    assert table["DoCo"]["unseen target"].startswith("10.0% [")
    assert table["Concept Ablation"]["unseen target"].startswith("40.0% [")
    assert table["DoCo"]["broken, unseen target"] == "n/a"
    for name in ("contact.webp", "tradeoff.png"):
        assert (tmp_path / "results" / name).stat().st_size > 200


KINDS = {"instance": "general", "style": "artists"}


def test_other_protocols_of_a_run_are_no_part_of_the_table(tmp_path: Path) -> None:
    plan = {"rows": {"uce": {"label": "UCE"}}, "targets": ["snoopy"],
            "protocols": {k: {"name": f"spm_{v}"} for k, v in KINDS.items()}}  # fmt: skip
    folder = tmp_path / "uce-snoopy-0" / "evaluation"
    folder.mkdir(parents=True)
    for name in ("spm_general", "spm_general_lite", "spm_artists", "concept_ablation"):
        (folder / f"{name}.json").write_text(json.dumps({"protocol": name}), encoding="utf-8")
    assert [r["protocol"] for _, _, r in read_results(tmp_path, plan)] == ["spm_general"]

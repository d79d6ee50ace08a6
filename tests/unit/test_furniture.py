"""The files around the code: workflow, hooks, citation, templates and Dockerfile."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FORMS = [
    ".github/ISSUE_TEMPLATE/bug_report.yml",
    ".github/ISSUE_TEMPLATE/feature_request.yml",
]
FIELDS = {"textarea", "input", "dropdown", "checkboxes"}  # of a form; the other kind is markdown


def read(name: str) -> Any:
    """The content of a YAML file."""
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def copied() -> list[str]:
    """What the Dockerfile copies into the image."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    return [source for line in lines if line.startswith("COPY ") for source in line.split()[1:-1]]


def test_the_workflow_runs_the_script_with_a_limit() -> None:
    (job,) = read(".github/workflows/ci.yml")["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    assert (ROOT / ".ci" / "run").is_file()
    assert job["timeout-minutes"] > 0


def test_the_workflow_has_the_python_of_make() -> None:
    (job,) = read(".github/workflows/ci.yml")["jobs"].values()
    (python,) = [s["with"]["python-version"] for s in job["steps"] if "python" in s.get("uses", "")]
    assert f"PYTHON ?= python{python}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_hooks_are_tools_of_the_dev_extra(project: dict[str, Any]) -> None:
    (repo,) = read(".pre-commit-config.yaml")["repos"]
    dev = " ".join(project["project"]["optional-dependencies"]["dev"])
    assert repo["repo"] == "local"
    assert all(tool in dev for tool in ("pre-commit>", "pre-commit-hooks>", "ruff>", "mypy>"))
    assert all(hook["entry"].startswith(".venv/bin/") for hook in repo["hooks"])
    assert all(hook["language"] == "system" for hook in repo["hooks"])


def test_the_hooks_do_what_lint_does() -> None:
    (repo,) = read(".pre-commit-config.yaml")["repos"]
    entries = [hook["entry"] for hook in repo["hooks"]]
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nlint:")[2]
    for tool in re.findall(r"\$\(BIN\)/(ruff \w+|mypy)", recipe.partition("\n\n")[0]):
        assert any(entry.startswith(f".venv/bin/{tool}") for entry in entries), tool


def test_the_hooks_leave_results_and_assets_alone() -> None:
    excluded = re.compile(read(".pre-commit-config.yaml")["exclude"])
    results = [p for p in (ROOT / "experiments").glob("*/results/**/*") if p.is_file()]
    assets = [p for p in (ROOT / "unlearn" / "assets").rglob("*") if p.is_file()]
    assert results
    assert assets
    for path in results + assets:
        assert excluded.search(path.relative_to(ROOT).as_posix()), path
    for folder in ("unlearn", "tests", "experiments", "hydra_plugins"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not excluded.search(path.relative_to(ROOT).as_posix()), path


def test_the_citation_is_of_this_version(project: dict[str, Any]) -> None:
    citation = read("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == project["project"]["version"]
    assert citation["license"] == project["project"]["license"]
    assert citation["authors"] == [{"name": "The unlearn authors"}]
    (paper,) = citation["references"]
    assert f"arXiv {Path(paper['url']).name}" in (ROOT / "NOTICE").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FORMS)
def test_an_issue_form_is_valid(name: str) -> None:
    form = read(name)
    assert form["name"]
    assert form["description"]
    fields = [part for part in form["body"] if part["type"] != "markdown"]
    assert fields
    assert {part["type"] for part in fields} <= FIELDS
    assert all(part["attributes"]["label"] for part in fields)
    assert all(part["attributes"]["value"] for part in form["body"] if part not in fields)
    ids = [part["id"] for part in fields]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[\w-]+", own) for own in ids)
    for part in fields:
        if part["type"] == "dropdown":
            options = part["attributes"]["options"]
            assert len(set(options)) == len(options) > 0
            assert all(isinstance(option, str) for option in options)  # a bare yes is a bool


def test_each_issue_form_is_tested() -> None:
    found = (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")
    assert {p.name for p in found} == {Path(name).name for name in FORMS} | {"config.yml"}


def test_vulnerabilities_are_sent_to_the_security_page() -> None:
    links = read(".github/ISSUE_TEMPLATE/config.yml")["contact_links"]
    assert all(set(link) == {"name", "url", "about"} for link in links)
    assert all(link["url"].startswith("https://") for link in links)
    assert any("SECURITY.md" in link["about"] for link in links)
    assert "## Report a vulnerability" in (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_what_the_dockerfile_copies_exists_and_is_sent_to_docker(copied: list[str]) -> None:
    assert copied
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored  # all else
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored, source


def test_the_dockerfile_copies_what_the_wheel_is_built_from(
    copied: list[str], project: dict[str, Any]
) -> None:
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert needed | set(wheel["packages"]) | set(wheel["force-include"]) <= set(copied)


def test_the_image_is_not_run_by_root_and_starts_the_command(project: dict[str, Any]) -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    (user,) = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert user != "root"
    (command,) = project["project"]["scripts"]
    assert f'ENTRYPOINT ["{command}"]' in lines


def test_make_docker_builds_the_image_with_its_arguments() -> None:
    command = ["make", "-n", "-C", str(ROOT), "docker", "ARGS=--build-arg EXTRAS=plots"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "docker build -t unlearn --build-arg EXTRAS=plots .\n" in done.stdout

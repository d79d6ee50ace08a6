"""What is run: groups of 1, 2, 4 and 8 concepts, each forgotten in three ways."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from experiments.table2.run import SMOKE, SMOKE_STEPS

# shown instances and styles in turn; none is a development concept
CONCEPTS = (
    "rabbit", "twemoji", "rocket", "noto", "penguin", "emojione", "strawberry", "contrast"
)  # fmt: skip
WAYS = ("joint", "sequential", "merged")
DEFAULT = ("method.contexts=0", "method.lr=2e-5", "steps=500")  # when the kept rows were run


class Job(NamedTuple):
    """One unlearned model: "single", or a way of `WAYS`, and what it forgets in order."""

    way: str
    concepts: tuple[str, ...]

    @property
    def name(self) -> str:
        """Names the run directory and its kept rows."""
        return f"{self.way}-{'+'.join(self.concepts)}"

    @property
    def needs(self) -> list[Job]:
        """The runs whose weights it starts from, or merges."""
        if self.way == "merged":
            return [Job("single", (c,)) for c in self.concepts]
        if self.way == "sequential":
            before = self.concepts[:-1]
            return [Job("single" if len(before) == 1 else "sequential", before)]
        return []

    @property
    def rank(self) -> int:
        """When it can run: after all of lower rank."""
        return 1 + max((job.rank for job in self.needs), default=-1)


def groups_of(concepts: tuple[str, ...]) -> dict[int, list[tuple[str, ...]]]:
    """Disjoint groups by their size, 1, 2, 4 and so on; at each size they hold every concept."""
    sizes = [2**i for i in range(len(concepts).bit_length()) if len(concepts) % 2**i == 0]
    return {n: [concepts[i : i + n] for i in range(0, len(concepts), n)] for n in sizes}


def jobs_of(concepts: tuple[str, ...]) -> list[Job]:
    """All runs, each after those that it needs."""
    jobs = {Job("single", group): None for group in groups_of(concepts)[1]}
    for size, groups in groups_of(concepts).items():
        for group in groups if size > 1 else []:
            steps = [Job("sequential", group[:n]) for n in range(2, size + 1)]
            jobs |= dict.fromkeys([Job("joint", group), Job("merged", group), *steps])
    return sorted(jobs, key=lambda job: job.rank)


def missing(jobs: list[Job], rows: Path, runs: Path) -> list[Job]:
    """The jobs without kept rows, and those whose weights one of them needs and does not find."""
    wanted: set[Job] = set()
    for job in reversed(jobs):
        found = (runs / job.name / "unlearned.safetensors").exists()
        needed = any(job in other.needs for other in wanted)
        if not (rows / f"{job.name}.csv").exists() or (needed and not found):
            wanted.add(job)
    return [job for job in jobs if job in wanted]


def overrides_of(job: Job, scale: str, runs: Path) -> list[str]:
    """Those of `unlearn train` for a run that is not merged of others."""
    own = job.concepts[-1] if job.way == "sequential" else f"[{','.join(job.concepts)}]"
    overrides = [f"concept={own}", "trainer.precision=auto", *DEFAULT]
    overrides += [f"after={runs / before.name}" for before in job.needs]
    if scale == "smoke":
        overrides += [*SMOKE, f"steps={SMOKE_STEPS}", "method.warmup_steps=2"]
    return [*overrides, f"run_dir={runs / job.name}"]

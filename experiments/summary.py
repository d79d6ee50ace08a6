"""One row a run: does it forget, does it keep the rest, and does it meet the bars?

python -m experiments.summary runs/*-doco-0
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from unlearn.evaluation.goals import GOALS, goal_values


def summarise(results: list[dict[str, Any]]) -> str:
    """A Markdown table; a share that misses its bar is marked with an exclamation mark."""
    header = [f"{name} ({'≥' if more else '≤'} {bar:.0%})" for name, bar, more in GOALS]
    lines = ["| concept | kind | " + " | ".join(header) + " |", "|---" * (len(GOALS) + 2) + "|"]
    missed = total = 0
    for result in results:
        cells = []
        for value, (_, bar, more) in zip(goal_values(result), GOALS, strict=True):
            if value is None:
                cells.append("n/a")
                continue
            met = value >= bar if more else value <= bar
            missed, total = missed + (not met), total + 1
            cells.append(f"{value:.0%}{'' if met else ' !'}")
        lines.append(f"| {result['concept']} | {result['kind']} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"{total - missed} of {total} bars met."])


def finished_runs(parser: argparse.ArgumentParser, runs: list[Path]) -> list[Path]:
    """The run directories; ends the program where one of them is not finished."""
    for run in runs:
        if not (run / "result.json").exists():
            parser.error(f"{run}: no result.json in it")
    return runs


def main() -> None:
    """Print the table of the runs named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    runs = finished_runs(parser, parser.parse_args().runs)
    print(summarise([json.loads((run / "result.json").read_text()) for run in runs]))


if __name__ == "__main__":
    main()

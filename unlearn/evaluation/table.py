"""Render the four prompt sets as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unlearn.evaluation.intervals import Rate

TABLE_COLUMNS = ("right", "anchor", "retention", "object", "style", "broken")


def markdown_table(result: Mapping[str, Any]) -> str:
    """Return the four sets as a Markdown table; a cell is base → unlearned [95 % interval].

    With several concepts, the table has the sets of each and of all. A cell is empty where nothing
    was measured. The judge's note stands below the table.
    """
    concepts = result.get("concepts", {})
    head = [*["concept"] * bool(concepts), "set", "n", *TABLE_COLUMNS]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, own in concepts.items():
        label = f"{name}, before" if own["earlier"] else name
        lines += [f"| {label} {line}" for line in table_lines(own["sets"])]
    lines += [f"| all {line}" if concepts else line for line in table_lines(result["sets"])]
    if "judge" in result:
        lines += ["", result["judge"]]
    return "\n".join(lines)


def table_lines(sets: dict[str, Any]) -> list[str]:
    """Return the table's lines, one for each set."""
    lines = []
    for name, row in sets.items():
        cells = []
        for column in TABLE_COLUMNS:
            pair = {k: Rate(**v) for k, v in row[column].items()} if column in row else {}
            if not pair or not pair["base"].n:
                cells.append("")
            elif column == "retention":
                cells.append(str(pair["unlearned"]))
            else:
                cells.append(f"{pair['base'].value:.0%} → {pair['unlearned']}")
        lines.append(f"| {name} | {row['right']['base']['n']} | " + " | ".join(cells) + " |")
    return lines

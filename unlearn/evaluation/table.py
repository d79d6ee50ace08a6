"""Render the four prompt sets as a Markdown table, and as a table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from unlearn.evaluation.intervals import Rate
from unlearn.evaluation.score import TARGET_SETS

TERMINAL_WIDTH = 80  # columns
TABLE_COLUMNS = ("right", "anchor", "retention", "same", "object", "style", "broken")


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
            elif column in ("retention", "same"):
                cells.append(str(pair["unlearned"]))
            else:
                cells.append(f"{pair['base'].value:.0%} → {pair['unlearned']}")
        lines.append(f"| {name} | {row['right']['base']['n']} | " + " | ".join(cells) + " |")
    return lines


def terminal_table(result: Mapping[str, Any]) -> str:
    """Return the four sets as aligned text of at most 80 columns.

    A cell is base → unlearned in per cent, with the 95 % interval in brackets. The column `kept` is
    the anchor's rate of target sets, and the retention of the others. The column `same` is the
    share of the same pictures among what is kept. With several concepts there is a table for each,
    and one for all. The judge's note stands below.
    """
    concepts = {
        f"{name}, before" if own["earlier"] else name: own["sets"]
        for name, own in result.get("concepts", {}).items()
    }
    console = Console(width=TERMINAL_WIDTH, color_system=None, highlight=False)
    with console.capture() as written:
        for title, sets in {**concepts, "all" if concepts else "": result["sets"]}.items():
            table = Table(
                box=None, padding=(0, 1, 0, 0), pad_edge=False, title=title or None,
                title_justify="left",
            )  # fmt: skip
            for name in ("set", "n", "right", "anchor / kept", "same", "broken"):
                table.add_column(name, justify="right" if name == "n" else "left", no_wrap=True)
            for name, rates in sets.items():
                second = rates["anchor" if name in TARGET_SETS else "retention"]
                cells = [terminal_cell(pair) for pair in (rates["right"], second)]
                broken = terminal_cell(rates["broken"]).partition(" [")[0]
                same = rates["same"]["unlearned"] if "same" in rates else {"n": 0}
                share = f"{same['value']:.0%}" if same["n"] else ""
                table.add_row(name, str(rates["right"]["base"]["n"]), *cells, share, broken)
            console.print(table)
    lines = [line.rstrip() for line in written.get().splitlines() if line.strip()]
    return "\n".join([*lines, *([result["judge"]] if "judge" in result else [])])


def terminal_cell(pair: Mapping[str, Any]) -> str:
    """Return a pair of rates as short text, such as "98 → 3% [1–8]"; "" without an image."""
    sides = {side: Rate(**pair[side]) for side in ("base", "unlearned")}
    before, after = sides["base"], sides["unlearned"]
    if not before.n or not after.n:
        return ""
    numbers = (before.value, after.value, after.low, after.high)
    return "{:.0f} → {:.0f}% [{:.0f}–{:.0f}]".format(*(100 * (x or 0) for x in numbers))

"""Table 2 as a web page and in LaTeX, from its cells as text."""

from __future__ import annotations

import html

Cells = list[list[str]]  # the head, then a line a method
CAPTIONS = {"targets": "Table 2", "fresh_targets": "Fresh targets"}
LEAD = (
    "How often a concept is drawn once it has been forgotten, and what else is kept: means with "
    "95 % intervals, and the number of images. Lower is better for the target and for broken "
    "images, higher for retention."
)
STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:1rem auto;padding:0 1rem;max-width:100rem}
p,li{max-width:48rem}
div{overflow-x:auto}
table{border-collapse:collapse;font-size:13px}
td,th{padding:4px 8px;border-bottom:1px solid #ccc;text-align:left;vertical-align:top}
td:first-child,th:first-child{position:sticky;left:0;background:#fff;min-width:6.5rem}
td:not(:first-child){white-space:nowrap}
img{max-width:100%;height:auto}
"""
ESCAPED = {"%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "$": r"\$"}
MATHS = {"g_u + 0.1 g_r": r"$g_u + 0.1\,g_r$", "g_u": "$g_u$", "λ": r"$\lambda$"}


def page(tables: list[tuple[str, Cells]], notes: list[str], verdicts: list[str]) -> str:
    """The page: a lead, the tables, the pictures, the claims, and last how to read it.

    Args:
        tables: the targets' name in the plan, and the cells.
        notes: how the tables were made.
        verdicts: the claims.
    """
    body = [f"<h1>{CAPTIONS['targets']}: every method</h1>\n<p>{LEAD}</p>"]
    for number, (which, (head, *lines)) in enumerate(tables):
        rows = [("th", head), *(("td", line) for line in lines)]
        marked = "\n".join(
            "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line) + "</tr>"
            for tag, line in rows
        )
        title = f"<h2>{CAPTIONS[which]}</h2>\n" if number else ""
        body.append(f"{title}<div><table>\n{marked}\n</table></div>")
    body.append(
        '<img src="tradeoff.svg" alt="unseen-target rate and retention of every method">\n'
        '<h2>Pictures</h2>\n<img src="contact.webp" alt="methods by prompts">'
    )
    for title, texts in (("The claims", verdicts), ("How to read this", notes)):
        items = "\n".join(f"<li>{html.escape(text)}</li>" for text in texts)
        body.append(f"<h2>{title}</h2>\n<ul>\n{items}\n</ul>" if items else "")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Table 2</title>\n<style>{STYLE}</style></head><body>\n"
        + "\n".join(filter(None, body))
        + "\n</body></html>\n"
    )


def latex(text: str) -> str:
    """A cell in LaTeX."""
    for plain, maths in MATHS.items():
        if plain in text:
            before, _, after = text.partition(plain)
            return latex(before) + maths + latex(after)
    return "".join(ESCAPED.get(character, character) for character in text)


def latex_cell(text: str) -> str:
    """A cell without the number of images, its interval in small print."""
    value, bracket, rest = text.partition(" [")
    interval, _, after = rest.partition("]")
    mark = latex(" !" * after.endswith("!"))
    return latex(value) + mark + (rf" {{\scriptsize [{latex(interval)}]}}" if bracket else "")


def latex_table(which: str, cells: Cells) -> str:
    """A table that needs the package booktabs.

    Args:
        which: the targets' name in the plan.
        cells: the head and the lines.
    """
    head, *lines = ([latex_cell(cell) for cell in line] for line in cells)
    rows = [" & ".join(line) + r" \\" for line in (head, *lines)]
    return "\n".join([
        f"% {CAPTIONS[which]}: means with 95 % intervals; needs \\usepackage{{booktabs}}",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule", r"\end{tabular}", "",
    ])  # fmt: skip

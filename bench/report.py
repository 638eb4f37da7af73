"""The tables and the JSON of a run (pure, but for :func:`replace_between`'s caller)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from bench.samples import summarise

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.goals import Goal
    from bench.rounds import Outcome

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


class Column(NamedTuple):
    """One metric of a table: its key, its heading, and how its values are multiplied and rounded to be shown."""

    metric: str
    heading: str
    factor: float = 1.0
    digits: int = 1


class Group(NamedTuple):
    """Candidates that took turns, and how they are shown; ratios are to ``base`` by the first column."""

    name: str
    title: str
    columns: tuple[Column, ...]
    outcome: Outcome
    base: str = ""


def markdown(
    host: Mapping[str, str], groups: Sequence[Group], goals: Sequence[Goal], notes: Mapping[str, str]
) -> str:
    """Return the whole report."""
    parts = [goals_table(goals)]
    parts += [group_table(group) for group in groups]
    if notes:
        parts.append("Not measured:\n\n" + "\n".join(f"- {name}: {why}" for name, why in notes.items()))
    parts.append(table(("host", ""), [(name, value) for name, value in host.items()]))
    return "\n\n".join(parts) + "\n"


def goals_table(goals: Sequence[Goal]) -> str:
    """Return the table of goals."""
    rows = []
    for goal in goals:
        word = "at least" if goal.least else "at most"
        value = "-" if goal.value is None else f"{goal.value:.3g} {goal.unit}"
        rows.append((goal.text, f"{word} {goal.limit:.3g} {goal.unit}", value, goal.verdict))
    return "### Goals\n\n" + table(("goal", "limit", "this run", ""), rows)


def group_table(group: Group) -> str:
    """Return the table of one group: median (p10 to p90) for each metric."""
    samples = group.outcome.samples
    first = group.columns[0]
    ratio = [f"to {group.base}"] if group.base in samples else []
    headings = ["", *(column.heading for column in group.columns), *ratio, "runs"]
    rows = []
    for name, metrics in samples.items():
        cells = [name]
        runs = 0
        for column in group.columns:
            values = metrics.get(column.metric)
            if not values:
                cells.append("-")
                continue
            summary = summarise([value * column.factor for value in values])
            runs = max(runs, summary.runs)
            spread = (
                f" ({summary.p10:.{column.digits}f} to {summary.p90:.{column.digits}f})"
                if summary.runs > 1
                else ""
            )
            cells.append(f"{summary.median:.{column.digits}f}{spread}")
        if ratio:
            base = summarise(samples[group.base][first.metric]).median
            mine = metrics.get(first.metric)
            cells.append(f"{summarise(mine).median / base:.2f}" if mine and base else "-")
        rows.append((*cells, str(runs)))
    rows += [
        (name, f"failed: {why}", *[""] * (len(headings) - 2)) for name, why in group.outcome.failures.items()
    ]
    return f"### {group.title}\n\n" + table(headings, rows)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; text is made safe for its cells."""
    lines = ["| " + " | ".join(map(_cell, headings)) + " |", "|" + "---|" * len(headings)]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def as_data(
    host: Mapping[str, str], groups: Sequence[Group], goals: Sequence[Goal], notes: Mapping[str, str]
) -> dict[str, object]:
    """Return the report for JSON: every value that was measured, in the units of ``samples`` (s, ms, MB/s, MiB)."""
    return {
        "format": 1,
        "host": dict(host),
        "groups": {
            group.name: {
                "candidates": {
                    name: {
                        metric: {**summarise(values)._asdict(), "values": values}
                        for metric, values in metrics.items()
                    }
                    for name, metrics in group.outcome.samples.items()
                },
                "failures": group.outcome.failures,
            }
            for group in groups
        },
        "goals": [{**goal._asdict(), "verdict": goal.verdict} for goal in goals],
        "missing": dict(notes),
    }


def replace_between(text: str, new: str) -> str:
    """Return a document with what stands between its two markers replaced.

    Raises:
        ValueError: It does not have both markers, in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n\n{new.strip()}\n\n{END}{after}"

"""A plot of how the time of a start goes with what there is of something, as SVG (pure).

One panel for each thing that is counted, one line each: medians, with a bar from the lowest tenth to the highest. All
panels have one scale, which begins at nothing: a line that rises is seen to rise by how much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from bench.samples import summarise

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_WIDTH, _HEIGHT, _GAP, _LEFT, _TOP, _BOTTOM = 200, 150, 24, 44, 28, 40
_LINE, _GRID, _TEXT = "#2a6f97", "#8884", "#808080"
_HEADING = "start to exit of true, ms (medians, and where the lowest and highest tenth end)"
_STEPS_MS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class Panel(NamedTuple):
    """One thing that is counted, and the seconds that were measured at each count."""

    title: str
    values: Mapping[int, Sequence[float]]


def draw(panels: Sequence[Panel]) -> str:
    """Return the picture."""
    summaries = [
        {
            count: summarise([value * 1000 for value in values])
            for count, values in panel.values.items()
            if values
        }
        for panel in panels
    ]
    highest = max((one.p90 for summary in summaries for one in summary.values()), default=1.0)
    step = next((step for step in _STEPS_MS if highest <= step * 4), _STEPS_MS[-1])
    top_ms = step * (int(highest / step) + 1)
    width = _LEFT + len(panels) * (_WIDTH + _GAP)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_TOP + _HEIGHT + _BOTTOM}"'
    parts = [
        f'{head} font-family="sans-serif" font-size="11" fill="{_TEXT}">',
        f'<text x="{_LEFT}" y="12">{_HEADING}</text>',
    ]

    def height(ms: float) -> float:
        return round(_TOP + _HEIGHT * (1 - ms / top_ms), 1)

    for ms in range(0, top_ms + 1, step):
        parts.append(f'<text x="{_LEFT - 6}" y="{height(ms) + 4}" text-anchor="end">{ms}</text>')
        parts.append(f'<path d="M{_LEFT} {height(ms)}H{width - _GAP}" stroke="{_GRID}"/>')
    for number, (panel, summary) in enumerate(zip(panels, summaries, strict=True)):
        left = _LEFT + number * (_WIDTH + _GAP)
        last = max(summary, default=0) or 1
        points = []
        for count, one in sorted(summary.items()):
            x = round(left + 8 + (_WIDTH - 16) * count / last, 1)
            points.append(f"{x} {height(one.median)}")
            parts.append(
                f'<path d="M{x} {height(one.p10)}V{height(one.p90)}" stroke="{_LINE}" stroke-opacity=".4"/>'
            )
            parts.append(f'<circle cx="{x}" cy="{height(one.median)}" r="2.5" fill="{_LINE}"/>')
            parts.append(f'<text x="{x}" y="{_TOP + _HEIGHT + 14}" text-anchor="middle">{count}</text>')
        if points:
            parts.append(f'<path d="M{"L".join(points)}" fill="none" stroke="{_LINE}"/>')
        middle = left + _WIDTH / 2
        parts.append(
            f'<text x="{middle}" y="{_TOP + _HEIGHT + 30}" text-anchor="middle">{panel.title}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"

"""Samples and what is said about them: median, spread, ratio (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: candidate -> metric -> every value measured, in the order of the rounds.
Samples = dict[str, dict[str, list[float]]]


class Summary(NamedTuple):
    """What is told of a list of values: how many there were, the median, and where 10 % and 90 % of them end."""

    runs: int
    median: float
    p10: float
    p90: float


def quantile(values: Sequence[float], fraction: float) -> float:
    """Return the value below which ``fraction`` (0 to 1) of the values lie, interpolated between neighbours.

    Raises:
        ValueError: There are no values, or the fraction is not one.
    """
    if not values or not 0 <= fraction <= 1:
        raise ValueError("a quantile needs values, and a fraction from 0 to 1")
    ordered = sorted(values)
    place = fraction * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def summarise(values: Sequence[float]) -> Summary:
    """Return the summary of at least one value."""
    return Summary(len(values), quantile(values, 0.5), quantile(values, 0.1), quantile(values, 0.9))


def add(samples: Samples, candidate: str, metrics: Mapping[str, float]) -> None:
    """Append the metrics of one run."""
    kept = samples.setdefault(candidate, {})
    for metric, value in metrics.items():
        kept.setdefault(metric, []).append(value)


def median(samples: Samples, candidate: str, metric: str) -> float | None:
    """Return a candidate's median, or None if it was not measured."""
    values = samples.get(candidate, {}).get(metric)
    return quantile(values, 0.5) if values else None


def paired_ratio(samples: Samples, one: str, other: str, metric: str) -> float | None:
    """Return the ratio of the medians of two candidates, or None if one was not measured.

    The candidates took turns in the same rounds, so that what else the machine did met both.
    """
    upper, lower = median(samples, one, metric), median(samples, other, metric)
    return upper / lower if upper is not None and lower else None

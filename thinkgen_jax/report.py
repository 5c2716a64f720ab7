# SPDX-License-Identifier: Apache-2.0
"""What a run shows at its end: curves, a table of before and after, one markdown page.

Functions of their arguments alone; only `curves` and `write` touch the disk. Intervals are 95 %.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float, Shaped

matplotlib.use("Agg")  # before pyplot: no screen is needed

import matplotlib.pyplot as plt  # noqa: E402

NORMAL = 1.959963984540054  # 97.5 % point of the normal distribution
PAGE = "report.md"
RESAMPLES = 2000
WIDTH = 3  # panels side by side


class Interval(NamedTuple):
    """A mean with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def mean_interval(
    values: Shaped[np.ndarray, " _"], clusters: Shaped[np.ndarray, " _"] | None = None
) -> Interval:
    """Mean of samples with a bootstrap interval.

    Args:
      values: Finite numbers, at least one. With one sample (or cluster) the ends are infinite.
      clusters: Which samples belong together, e.g. share a word; whole clusters are drawn again.

    Raises:
      ValueError: no sample, one that is not finite, or `clusters` of another length.
    """
    values = np.asarray(values, np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError(
            f"{values.size} samples, finite: {np.isfinite(values).sum()}: want >= 1, all"
        )
    if clusters is None:
        sums, counts = values, np.ones_like(values)
    else:
        if len(clusters) != len(values):
            raise ValueError(f"{len(clusters)} clusters for {len(values)} samples: want as many")
        _, index = np.unique(clusters, return_inverse=True)
        sums, counts = np.bincount(index, values), np.bincount(index).astype(np.float64)
    mean = float(values.mean())
    if len(sums) < 2:
        return Interval(mean, -math.inf, math.inf)
    # The same draws at every call: a report is a function of its numbers.
    draws = np.random.default_rng(0).integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(mean, float(low), float(high))


def paired_interval(
    before: Shaped[np.ndarray, " _"],
    after: Shaped[np.ndarray, " _"],
    clusters: Shaped[np.ndarray, " _"] | None = None,
) -> Interval:
    """Mean of `after - before`, sample by sample, with its interval; clear of zero is an effect.

    Args:
      before: One score for each prompt.
      after: Scores of the same prompts in the same order.
      clusters: See `mean_interval`.

    Raises:
      ValueError: different lengths, or as `mean_interval`.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} scores before, {len(after)} after: want pairs")
    difference = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    return mean_interval(difference, clusters)


def normal_interval(values: Float[np.ndarray, " _"]) -> Interval:
    """Mean ± 1.96 standard errors (ddof 1): for large samples, and to check the bootstrap."""
    error = NORMAL * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return Interval(mean, mean - error, mean + error)


def show(interval: Interval, *, sign: bool = False) -> str:
    """`0.512 [0.480, 0.544]`, with a plus where `sign` and positive."""
    form = "+.3f" if sign else ".3f"
    mean, low, high = (format(x, form) for x in interval)
    return f"{mean} [{low}, {high}]"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A markdown table; the first column is text, the others stand to the right.

    Raises:
      ValueError: a row is longer or shorter than the head.
    """
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"row {tuple(row)!r} has {len(row)} cells, the head {len(head)}")
    rule = ["---", *["---:"] * (len(head) - 1)]
    lines = [head, rule, *[[_cell(x) for x in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def before_after(
    before: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
    clusters: Mapping[str, np.ndarray] | None = None,
) -> str:
    """Markdown table: a row for each name with samples, both means, difference and its interval.

    Args:
      before: Name, e.g. a scenario, to one score per prompt.
      after: The same names, and the same prompts in the same order.
      clusters: Names whose samples belong together in clusters.

    Raises:
      ValueError: different names, or scores that are not pairs.
    """
    if set(before) != set(after):
        raise ValueError(
            f"scores before for {sorted(before)}, after for {sorted(after)}: want equal"
        )
    rows = []
    for name in before:
        difference = paired_interval(before[name], after[name], (clusters or {}).get(name))
        is_clear = difference.low > 0 or difference.high < 0
        rows.append(
            (
                name,
                len(before[name]),
                float(np.mean(before[name])),
                float(np.mean(after[name])),
                show(difference, sign=True),
                "yes" if is_clear else "no",
            )
        )
    head = ("", "n", "before", "after", "difference [95 %]", "clear of zero")
    return table(head, rows)


def smooth(values: Float[np.ndarray, " _"], window: int) -> Float[np.ndarray, " _"]:
    """Running mean over the last `window` values (fewer at the start); NaN values are left out."""
    known = np.isfinite(values)
    sums = np.cumsum(np.where(known, values, 0.0))
    counts = np.cumsum(known).astype(np.float64)
    sums[window:], counts[window:] = (
        sums[window:] - sums[:-window],
        counts[window:] - counts[:-window],
    )
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def curves(rows: Sequence[Mapping], names: Sequence[str], path: str | Path) -> bool:
    """Draws one panel per number over the steps and writes a PNG.

    Args:
      rows: Rows with "step" and some of the names; None stands for a number that was not finite.
      names: What to draw; a name that no row has is left out.
      path: Where the picture goes; its folder exists.

    Returns:
      Whether there was anything to draw.
    """
    panels = [name for name in names if any(row.get(name) is not None for row in rows)]
    if not panels:
        return False
    height, width = math.ceil(len(panels) / WIDTH), min(WIDTH, len(panels))
    figure, axes = plt.subplots(height, width, figsize=(4 * width, 2.6 * height), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, panels, strict=False):
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        steps, values = np.asarray(points, np.float64).T
        axis.plot(steps, values, color="0.75", linewidth=0.8, marker=".", markersize=2)
        axis.plot(steps, smooth(values, max(1, len(values) // 20)), color="C0")
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """A markdown page: a title, then a heading and its text for each section that has text."""
    parts = [f"# {title}", *(f"## {head}\n\n{text}" for head, text in sections if text)]
    return "\n\n".join(parts) + "\n"


def flatten(config: Mapping, prefix: str = "") -> dict[str, object]:
    """Nested settings as one level, names joined by dots."""
    flat: dict[str, object] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def write(
    folder: str | Path,
    *,
    title: str,
    config: Mapping,
    rows: Sequence[Mapping],
    names: Sequence[str],
    tables: Sequence[tuple[str, str]] = (),
    pictures: Sequence[tuple[str, str]] = (),
) -> Path:
    """Writes `report.md` and `curves.png` into a run's folder.

    Args:
      folder: Where they go; it exists.
      title: First line of the page.
      config: The resolved config, nested.
      rows: Rows of the metrics, see `curves`.
      names: Numbers whose curves are drawn.
      tables: (heading, markdown) pairs, e.g. from `before_after`.
      pictures: (heading, path below the folder) pairs.

    Returns:
      The path of the page.
    """
    folder = Path(folder)
    drawn = curves(rows, names, folder / "curves.png")
    settings = [(f"`{name}`", f"`{value}`") for name, value in flatten(config).items()]
    sections = [
        *tables,
        ("Curves", "![curves](curves.png)" if drawn else ""),
        *((head, f"![{head}]({path})") for head, path in pictures),
        ("Config", table(("setting", "value"), settings) if settings else ""),
    ]
    path = folder / PAGE
    temporary = path.with_suffix(".tmp")  # a page that is there says that the run has ended
    temporary.write_text(page(title, sections), encoding="utf-8")
    return temporary.replace(path)


def _cell(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")

"""Plots of benchmarks, as PNG files. Matplotlib is an optional part of the installation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torpor.errors import TorporError

SIZE_INCHES = (8.0, 4.5)
DPI = 110


def require_matplotlib() -> Any:
    """Its pyplot, drawing into files only. Raises TorporError if it is not installed."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise TorporError(
            "plots need matplotlib: install it with `pip install 'torpor[bench]'`"
        ) from error
    mpl.use("Agg")
    from matplotlib import pyplot

    return pyplot


def curves(
    path: Path,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x: str,
    y: str,
    bars: Mapping[str, float] | None = None,
) -> None:
    """Lines through points (x, y), and horizontal ones that figures are held against."""
    pyplot = require_matplotlib()
    figure, axes = pyplot.subplots(figsize=SIZE_INCHES, dpi=DPI)
    for name, points in series.items():
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 100 else "", label=name)
    for name, value in (bars or {}).items():
        axes.axhline(value, color="grey", linestyle=":", linewidth=1, label=name)
    axes.set_ylim(bottom=0)
    _finish(figure, axes, path, title, x, y)


def histogram(
    path: Path, series: Mapping[str, Sequence[float]], *, title: str, x: str, most: float
) -> None:
    """How often which value was measured; values above `most` are counted at it."""
    pyplot = require_matplotlib()
    figure, axes = pyplot.subplots(figsize=SIZE_INCHES, dpi=DPI)
    edges = [most * number / 100 for number in range(101)]
    for name, values in series.items():
        clipped = [min(value, most) for value in values]
        weights = [1 / len(values)] * len(values)
        axes.hist(clipped, bins=edges, weights=weights, histtype="step", label=name)
    _finish(figure, axes, path, title, x, "share")


def _finish(figure: Any, axes: Any, path: Path, title: str, x: str, y: str) -> None:
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    require_matplotlib().close(figure)

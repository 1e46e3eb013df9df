"""How every figure is drawn and saved: one style, log axes with plain ticks, direct labels, the same bytes every time.

A figure is as wide as the text of a page 400 pixels wide, with type of 11.5 units and more: on a telephone and anywhere
larger it never falls below 11 pixels. matplotlib is used without pyplot, so nothing global is touched.
"""

import html
import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Page
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullFormatter, NullLocator

from analysis.numbers import fixed, power_of_ten, tick
from analysis.rows import Array

WIDTH = 376  # units of a figure; height follows from what it shows
INK, MUTED, GRID, ZONE = "#1b1b1b", "#595959", "#e4e4e4", "#f3f0e6"
MEASURED, PREDICTED, LAW = (
    "#0072B2",
    "#C04F00",
    "#1b1b1b",
)  # C04F00: Okabe-Ito vermilion, darker so that text in it is readable
# Okabe-Ito in the order of the run colours in MLflow; marker and dash tell the same without colour
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#1b1b1b")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
DASHES: tuple[Any, ...] = (
    "-",
    (0, (6, 2)),
    (0, (2, 1.5)),
    (0, (6, 2, 1.5, 2)),
    (0, (1, 1)),
    (0, (9, 3, 3, 3)),
    (0, (4, 4)),
)
HALO, HALO_WIDTH = "halo-", 3  # marks labels whose halo SVG draws by style
STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11.5,
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 12,
    "xtick.labelsize": 11.5,
    "ytick.labelsize": 11.5,
    "legend.fontsize": 11.5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.borderaxespad": 0.2,
    "legend.labelspacing": 0.25,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "axes.unicode_minus": True,
    "text.parse_math": False,  # run names may hold dollar signs
    "svg.fonttype": "none",
    "path.simplify": True,
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """The twin of a figure: the same facts as text."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A finished picture with the words and the table that go with it."""

    name: str  # file stem
    title: str
    alt: str  # what the picture shows, with its numbers, for who cannot see it
    caption: str  # how to read it
    svg: str
    png: bytes
    table: Table


@dataclass(frozen=True, kw_only=True)
class Mark:
    """How one rung looks in every figure."""

    colour: str
    marker: str
    dash: Any


def marks(names: Sequence[str]) -> dict[str, Mark]:
    """A look for each name by its position; colours repeat after seven, then with other markers and dashes."""
    n_colours = len(COLOURS)
    return {
        name: Mark(
            colour=COLOURS[i % n_colours],
            marker=MARKERS[i % len(MARKERS)],
            dash=DASHES[(i + i // n_colours) % len(DASHES)],
        )
        for i, name in enumerate(names)
    }


@contextmanager
def sheet(title: str, height: int = 300, rows: int = 1, columns: int = 1) -> Iterator[tuple[Any, Any]]:
    """(page, axes) in the house style; axes is one Axes, or a flat list of them when there are several."""
    with matplotlib.rc_context(STYLE):
        page = Page(
            figsize=(WIDTH / 72, height / 72), dpi=72, layout=ConstrainedLayoutEngine(w_pad=3 / 72, h_pad=3 / 72)
        )
        FigureCanvasAgg(page)
        axes = page.subplots(rows, columns, squeeze=False).ravel().tolist()
        page.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
        yield page, axes[0] if len(axes) == 1 else axes


def finish(page: Any, name: str, title: str, alt: str, caption: str, table: Table) -> Figure:
    """The page as a `Figure`; the same page gives the same bytes."""
    with matplotlib.rc_context(STYLE):
        page.get_layout_engine().execute(page)  # once for both formats
    page.set_layout_engine("none")
    png = png_bytes(page)  # first: the SVG takes the halos of labels off
    return Figure(
        name=name,
        title=title,
        alt=alt,
        caption=caption,
        svg=svg_text(page, name, alt),
        png=png,
        table=table,
    )


def svg_text(page: Any, name: str, alt: str) -> str:
    """A standalone SVG with role and label, free of dates, metadata and ids that could clash on one page."""
    for text in page.findobj(lambda artist: str(artist.get_gid() or "").startswith(HALO)):
        text.set_path_effects([])  # it would turn words into outlines; in SVG a style does the same
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        FigureCanvasSVG(page).print_svg(buffer, metadata={"Date": None, "Creator": None})  # savefig would draw twice
    body = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    body = own_ids(with_halos(body[body.index("<svg") :]), name)
    opening = body[: body.index(">") + 1]
    label = html.escape(" ".join(alt.split()), quote=True)
    opening = re.sub(r' (width|height)="[^"]*"', "", opening)
    return opening[:-1] + f' role="img" aria-label="{label}">' + body[body.index(">") + 1 :].rstrip() + "\n"


def with_halos(svg: str) -> str:
    """Labels with a halo behind their letters that stay text."""

    def styled(match: re.Match[str]) -> str:
        colour = match[1] if match[1] == "white" else f"#{match[1]}"
        return (
            f'<g style="paint-order: stroke; stroke: {colour}; stroke-width: {HALO_WIDTH}px; stroke-linejoin: round">'
        )

    return re.sub(rf'<g id="{HALO}(\w+)">', styled, svg)


def own_ids(svg: str, name: str) -> str:
    """Ids that something refers to get the figure's name in front, the others go: figures share a page without clashes."""
    used = set(re.findall(r"#([\w.-]+)", svg))

    def renamed(match: re.Match[str]) -> str:
        return f' id="{name}-{match[1]}"' if match[1] in used else ""

    svg = re.sub(r' id="([^"]+)"', renamed, svg)
    svg = re.sub(r'xlink:href="#([\w.-]+)"', rf'xlink:href="#{name}-\1"', svg)
    return re.sub(r"url\(#([\w.-]+)\)", rf"url(#{name}-\1)", svg)


def png_bytes(page: Any) -> bytes:
    """PNG at three pixels per unit (1,128 wide), without software or date fields."""
    buffer = io.BytesIO()
    page.set_dpi(216)
    with matplotlib.rc_context(STYLE):
        FigureCanvasAgg(page).print_png(buffer, metadata={"Software": None})
    page.set_dpi(72)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------ axes


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round ticks of a log axis: the densest of 1-2-5, 1-3, 1 per decade, every second decade … that has at most `most`."""
    if high / low < 3.2:  # less than half a decade: ordinary round numbers
        return plain_ticks(low, high, most)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [s * 10.0**e for e in range(first, last + 1) for s in steps]
        inside = [t for t in ticks if low * 0.999 <= t <= high * 1.001]
        if 2 <= len(inside) <= most:
            return inside
    for stride in range(2, 40):
        inside = [10.0**e for e in range(first, last + 1) if e % stride == 0 and low * 0.999 <= 10.0**e <= high * 1.001]
        if len(inside) <= most:
            return inside
    return [low, high]


def plain_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers within [low, high]."""
    values = MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(v) for v in values if low <= v <= high]


def decimals(ticks: Sequence[float]) -> int:
    """Places needed to tell round ticks apart."""
    for places in range(6):
        if all(abs(t - round(t, places)) < 1e-9 * max(1.0, abs(t)) for t in ticks):
            return places
    return 6


def size_axis(axis: Any, low: float, high: float, text: str, powers: bool = False, most: int = 6) -> None:
    """A log axis from `low` to `high` in counts (44M) or, for FLOPs, powers of ten; ticks are set by hand."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log", f"{axis.axis_name}lim": (low, high)})
    ticks = log_ticks(low, high, most)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([power_of_ten(t, 1) if powers else tick(t) for t in ticks]))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_label_text(text)


def value_axis(axis: Any, low: float, high: float, text: str, log: bool = False, most: int = 6) -> None:
    """An axis of plain decimals (losses, scores, percent), linear or log."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log" if log else "linear", f"{axis.axis_name}lim": (low, high)})
    ticks = plain_ticks(low, high, most)
    places = decimals(ticks)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([fixed(t, places) for t in ticks]))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_label_text(text)


def padded(values: Any, share: float = 0.06, log: bool = True) -> tuple[float, float]:
    """Limits that leave `share` of the range free on both sides; equal values get a twentieth of their size."""
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    low, high = float(finite.min()), float(finite.max())
    if log:
        room = max(math.log(high / low) * share, 0.004)
        return low * math.exp(-room), high * math.exp(room)
    room = (high - low) * share or 0.05 * (abs(high) or 1.0)
    return low - room, high + room


# ------------------------------------------------------------------------------------------------ marks and words


def label(
    ax: Any, x: float, y: float, text: str, dx: float = 0, dy: float = 0, halo: str = "white", **style: Any
) -> None:
    """Text beside a point, `dx`, `dy` units off, with a halo so that lines behind it do not touch it."""
    options: dict[str, Any] = {"fontsize": 11.5, "color": INK, "ha": "left", "va": "center", "zorder": 6} | style
    ax.annotate(
        text,
        (x, y),
        xytext=(dx, dy),
        textcoords="offset points",
        path_effects=[withStroke(linewidth=HALO_WIDTH, foreground=halo)],
        gid=f"{HALO}{halo.removeprefix('#')}",
        annotation_clip=False,
        **options,
    )


def spread(positions: Sequence[float], gap: float, low: float = -math.inf, high: float = math.inf) -> list[float]:
    """The nearest positions that keep `gap` between neighbours, in the given order of height, within [low, high]."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    # (sum of wanted positions, members); neighbours that would overlap are merged
    blocks: list[tuple[float, list[int]]] = []
    for i in order:
        blocks.append((positions[i], [i]))
        while len(blocks) > 1 and edges(blocks[-1], gap)[0] < edges(blocks[-2], gap)[1]:
            total, members = blocks.pop()
            blocks[-1] = (blocks[-1][0] + total, blocks[-1][1] + members)
    placed = [0.0] * len(positions)
    for block in blocks:
        bottom = edges(block, gap)[0] + gap / 2
        for k, i in enumerate(block[1]):
            placed[i] = bottom + k * gap
    if placed and max(placed) > high:
        placed = [p - (max(placed) - high) for p in placed]
    if placed and min(placed) < low:
        placed = [p + (low - min(placed)) for p in placed]
    return placed


def edges(block: tuple[float, list[int]], gap: float) -> tuple[float, float]:
    middle, half = block[0] / len(block[1]), len(block[1]) * gap / 2
    return middle - half, middle + half


def end_labels(ax: Any, ends: Sequence[tuple[float, float, str]], dx: float = 6) -> None:
    """Names at the right ends of lines, moved apart vertically."""
    low, high = ax.get_ylim()
    logged = ax.get_yscale() == "log"

    def share(y: float) -> float:
        return math.log(y / low) / math.log(high / low) if logged else (y - low) / (high - low)

    def value(s: float) -> float:
        return low * (high / low) ** s if logged else low + s * (high - low)

    placed = spread([share(y) for _, y, _ in ends], 0.06, 0.02, 0.98)  # shares of the axis height
    for (x, _, text), s in zip(ends, placed, strict=True):
        label(ax, x, value(s), text, dx=dx)


def band(ax: Any, x: Array, ends: tuple[Array, Array], strength: float = 0.16, name: str | None = None) -> None:
    """The area between two lines."""
    ax.fill_between(x, *ends, color=LAW, alpha=strength, linewidth=0, label=name, zorder=1)


def zone(ax: Any, start: float) -> None:
    """Shade from `start` to the right edge: nothing was measured there. The legend says so: it may be too narrow for a word."""
    end = ax.get_xlim()[1]
    if end > start:
        ax.axvspan(start, end, facecolor=ZONE, edgecolor="#d6cfba", linewidth=0.8, zorder=0, label="extrapolation")

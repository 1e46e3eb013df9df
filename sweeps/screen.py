"""What a person sees: numbers in words, tables, and the live view of a launch. Data goes to stdout, progress to stderr."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sweeps.status import PlanRow, RunRow, counts

WIDE_COLUMNS = 200
MANY_ROWS = 200  # a longer table is laid out by hand
GAP = 3  # columns between two of a table
STYLES = {"finished": "green", "running": "cyan", "failed": "red", "interrupted": "yellow", "stopped": "yellow"}


def human(number: float | None) -> str:
    """Three figures: 1281152 -> '1.28M', 999700 -> '1M'; None -> '-'."""
    if number is None:
        return "-"
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= 0.9995 * size:  # what rounds to 1000 of the smaller unit is 1 of this one
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def console(stderr: bool = False) -> Any:
    from rich.console import Console

    file = sys.stderr if stderr else sys.stdout
    width = None if file.isatty() else WIDE_COLUMNS  # a file or a pipe has no edge to fold at
    return Console(file=file, highlight=False, soft_wrap=True, width=width)


@dataclass(frozen=True)
class Table:
    """Rows under a title; numbers and short words right-aligned, the first and last columns left.

    Where a terminal is too narrow, columns named in `spare` are left out, the first of them first, and a line below says so.
    Of the last column only the first word needs room: what follows, such as why a run failed, is folded.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    spare: tuple[str, ...] = ()

    def __rich_console__(self, _console: Any, options: Any) -> Iterator[Any]:
        lengths = [
            [*map(cell_length, row[:-1]), len((row[-1].split() or [""])[0])] for row in (self.columns, *self.rows)
        ]
        needed = dict(zip(self.columns, (max(column) for column in zip(*lengths, strict=True)), strict=True))
        left_out: list[str] = []
        for name in self.spare:
            if sum(needed.values()) + GAP * len(needed) > options.max_width:
                del needed[name]
                left_out.append(name)
        kept = [i for i, name in enumerate(self.columns) if name in needed]
        columns, *rows = ([row[i] for i in kept] for row in (self.columns, *self.rows))
        yield many_rows(self.title, columns, rows) if len(rows) > MANY_ROWS else few_rows(self.title, columns, rows)
        if left_out:
            yield f"no room for {', '.join(left_out)}"


def cell_length(cell: str) -> int:
    """Columns that a cell takes, its style apart."""
    from rich.text import Text

    return len(Text.from_markup(cell)) if "[" in cell else len(cell)


def few_rows(title: str, columns: list[str], rows: list[list[str]]) -> Any:
    from rich import box
    from rich import table as rich_table

    out = rich_table.Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        last = i == len(columns) - 1
        out.add_column(name, justify="left" if i == 0 or last else "right", no_wrap=not last, overflow="fold")
    for row in rows:
        out.add_row(*row)
    return out


def many_rows(title: str, columns: list[str], rows: list[list[str]]) -> Any:
    """The same as lines of text: laying out a thousand rows takes rich longer than reading them from disk."""
    from rich.text import Text

    lengths = [[cell_length(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(column) for column in zip(*lengths, strict=True)]
    lines = [title, ""]
    for row, length in zip((columns, *rows), lengths, strict=True):
        pads = [" " * (width - n) for width, n in zip(widths, length, strict=True)]
        middle = [pad + cell for pad, cell in zip(pads[1:-1], row[1:-1], strict=True)]
        lines.append("  ".join([row[0] + pads[0], *middle, row[-1]]))
    return Text.from_markup("\n".join(lines))


def status_table(name: str, rows: list[RunRow]) -> Table:
    columns = ["rung", "seed", "lr", "state", "step", "tokens", "train loss", "val loss", "tok/s", "ETA", "run"]
    summary = ", ".join(f"{n} {state}" for state, n in counts(rows).items() if n)
    return Table(
        f"{name}: {summary}",
        columns,
        [status_line(r) for r in rows],
        ("tokens", "train loss", "tok/s", "lr", "ETA", "seed"),
    )


def status_line(row: RunRow) -> list[str]:
    style = STYLES.get(row.state)
    state = f"[{style}]{row.state}[/]" if style else row.state
    rate = human(row.tokens_per_second) if row.state == "running" else "-"
    tail = row.key if row.reason is None or row.state == "finished" else f"{row.key} {row.reason}"
    progress = f"{row.step}/{row.steps}"
    numbers = [progress, human(row.tokens), loss(row.train_loss), loss(row.val_loss), rate, duration(row.eta_seconds)]
    return [row.rung, str(row.seed), f"{row.lr:g}", state, *numbers, tail]


def plan_table(name: str, rows: list[PlanRow], total_flops: float) -> Table:
    columns = ["rung", "seed", "lr", "params", "non-emb.", "tokens", "steps", "batch", "FLOPs", "6 N D"]
    columns += ["workers", "GB each", "state", "run"]
    lines = [
        [r.rung, str(r.seed), f"{r.lr:g}", human(r.params_total), human(r.params_non_embedding)]
        + [human(r.tokens), f"{r.steps:,}", human(r.batch_tokens), f"{r.train_flops:.2e}", f"{r.train_flops_6n:.2e}"]
        + [str(r.workers), f"{sum(r.worker_bytes.values()) / 1e9:.3g}", r.state, r.key]
        for r in rows
    ]
    spare = ("steps", "batch", "6 N D", "non-emb.", "workers", "GB each", "lr", "seed", "tokens")
    return Table(f"{name}: {len(rows)} runs, {total_flops:.2e} training FLOPs", columns, lines, spare)


class Screen:
    """Progress of a launch on stderr: one live table on a terminal, one line per change elsewhere."""

    def __init__(self, name: str, live: bool) -> None:
        self._name, self._last = name, {}  # type: str, dict[str, str]
        self._console = console(stderr=True)
        self._live: Any = None
        if live:
            from rich.live import Live

            self._live = Live(console=self._console, auto_refresh=False, transient=False)
            self._live.start()

    def say(self, message: str) -> None:
        with contextlib.suppress(OSError):  # a log on a full disk must not end the launch
            self._console.print(message, markup=False)

    def update(self, rows: list[RunRow]) -> None:
        if self._live is not None:
            self._live.update(status_table(self._name, rows), refresh=True)
            return
        for row in rows:
            tenth = 10 * row.step // max(1, row.steps)
            mark = f"{row.state} {tenth if row.state == 'running' else ''}"
            if self._last.get(row.key) != mark:
                self._last[row.key] = mark
                self.say(self._line(row))

    def _line(self, row: RunRow) -> str:
        what = f"{row.rung}-s{row.seed} lr {row.lr:g}: {row.state} {row.step}/{row.steps}"
        if row.val_loss is not None:
            what += f", val loss {row.val_loss:.4f}"
        if row.state == "running" and row.tokens_per_second:
            what += f", {human(row.tokens_per_second)} tok/s, {duration(row.eta_seconds)} left"
        return what + (f" ({row.reason})" if row.reason and row.state != "finished" else "")

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

"""What people read: numbers in words, no invented values, one line per change where there is no terminal."""

import errno
import io
import os
import sys

import pytest

from sweeps.screen import MANY_ROWS, Screen, Table, duration, human, loss
from sweeps.status import RunRow


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "-"),
        (0, "0"),
        (950, "950"),
        (999.4, "999"),
        (999.7, "1k"),
        (53_792, "53.8k"),
        (999_499, "999k"),
        (999_700, "1M"),
        (-999_700, "-1M"),
        (1_281_152, "1.28M"),
        (7.11e9, "7.11B"),
        (3e11, "300B"),
        (0.0123, "0.0123"),
    ],
)
def test_numbers(number: float | None, text: str) -> None:
    assert human(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(None, "-"), (9.6, "10s"), (75, "1m15s"), (7_320, "2h02m")])
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_a_missing_loss_is_a_dash() -> None:
    assert loss(None) == "-" and loss(0.0) == "0.0000"


def row(state: str, step: int) -> RunRow:
    numbers = {
        "tokens": 0,
        "val_loss": None,
        "train_loss": None,
        "tokens_per_second": None,
        "eta_seconds": None,
        "reason": None,
    }
    return RunRow(key="k", rung="54k", seed=0, lr=0.01, state=state, step=step, steps=100, **numbers)


def test_plain_lines_say_only_what_changed(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen("demo", live=False)
    for state, step in [
        ("queued", 0),
        ("queued", 0),
        ("running", 1),
        ("running", 2),
        ("running", 11),
        ("finished", 100),
    ]:
        screen.update([row(state, step)])
    out = capsys.readouterr()
    assert out.out == "" and [line.split(": ")[1] for line in out.err.strip().split("\n")] == [
        "queued 0/100",
        "running 1/100",
        "running 11/100",
        "finished 100/100",
    ]


def test_a_log_on_a_full_disk_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys, "stderr", Full())
    screen = Screen("demo", live=False)
    screen.say("something")
    screen.update([row("running", 1)])


def shown(table: Table, width: int) -> list[str]:
    from rich.console import Console

    file = io.StringIO()
    Console(file=file, width=width).print(table)
    return file.getvalue().rstrip("\n").split("\n")


@pytest.mark.parametrize("count", [1, MANY_ROWS + 1])
def test_a_narrow_terminal_gets_fewer_columns_and_never_half_of_one(count: int) -> None:
    """Spare columns go one after another; a line says which, and what stays is whole."""
    cells = ["54k", "a" * 20, "[green]b[/]" + "b" * 19, f"0123456789ab cannot write to {'/folder' * 20}"]
    table = Table("t", ["rung", "first", "second", "run"], [cells] * count, spare=("first", "second"))
    for width, gone in ((100, []), (50, ["first"]), (30, ["first", "second"])):
        lines = shown(table, width)
        assert lines[0].strip() == "t" and (lines[-1] == f"no room for {', '.join(gone)}") == bool(gone)
        page = "\n".join(lines)
        assert "…" not in page and "0123456789ab" in page and "54k" in page
        assert ("a" * 20 in page) == ("first" not in gone) and ("b" * 20 in page) == ("second" not in gone)


def test_a_long_table_says_the_same_in_lines() -> None:
    rows = [[f"r{i}", "[green]finished[/]" if i % 2 else "new", str(i)] for i in range(MANY_ROWS + 1)]
    lines = shown(Table("many", ["rung", "state", "run"], rows), 80)
    assert lines[0] == "many" and lines[2].split() == ["rung", "state", "run"]
    assert [line.split() for line in lines[3:]] == [
        [a, "finished" if i % 2 else "new", c] for i, (a, _, c) in enumerate(rows)
    ]
    assert len({line.rstrip().rfind(" ") for line in lines[3:]}) == 1  # the columns stand in line

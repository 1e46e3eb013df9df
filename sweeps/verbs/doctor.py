"""`gopher doctor`: what on this machine would keep a sweep from running, each with its cure. Exit code 1 when something would."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from sweeps.checks import FAIL, all_checks
from sweeps.screen import console, table
from sweeps.settings import settings_of
from sweeps.study import ComposeFn

STYLES = {"ok": "green", "note": "dim", "warn": "yellow", "fail": "bold red"}


def run(compose: ComposeFn, overrides: Sequence[str]) -> int:
    settings = settings_of(compose(overrides).tree)
    checks = all_checks(settings)
    failed = sum(c.verdict == FAIL for c in checks)
    if settings.format == "json":
        print(json.dumps({"ok": not failed, "checks": [asdict(c) for c in checks]}, indent=2))
    else:
        rows = [[c.name, f"[{STYLES[c.verdict]}]{c.verdict}[/]", c.found, c.cure or ""] for c in checks]
        console().print(table("gopher doctor", ["check", "verdict", "found", "cure"], rows))
    return 1 if failed else 0

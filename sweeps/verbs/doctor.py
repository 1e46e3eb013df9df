"""`gopher doctor`: what on this machine would keep a sweep from running, each with its cure. Exit code 1 when something would."""

import json
from collections.abc import Sequence

from sweeps.checks import FAIL, all_checks
from sweeps.screen import Table, console
from sweeps.settings import settings_of
from sweeps.study import ComposeFn

STYLES = {"ok": "green", "note": "dim", "warn": "yellow", "fail": "bold red"}


def run(compose: ComposeFn, overrides: Sequence[str]) -> int:
    settings = settings_of(compose(overrides).tree)
    findings = all_checks(settings)
    failed = any(f.verdict == FAIL for f in findings.values())
    if settings.format == "json":
        checks = [{"name": name, **f._asdict()} for name, f in findings.items()]
        print(json.dumps({"ok": not failed, "checks": checks}, indent=2))
    else:
        rows = [[n, f"[{STYLES[f.verdict]}]{f.verdict}[/]", f.found, f.cure or ""] for n, f in findings.items()]
        console().print(Table("gopher doctor", ["check", "verdict", "found", "cure"], rows))
    return 1 if failed else 0

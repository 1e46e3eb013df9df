"""The rows of a benchmark on stdout: a table, or with --json data beside the versions that were measured."""

import json
import sys
from typing import Any


def show(rows: list[dict[str, Any]], title: str, versions: dict[str, Any]) -> None:
    if "--json" in sys.argv:
        print(json.dumps({"rows": rows, "versions": versions}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)

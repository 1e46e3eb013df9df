"""Forecasts on disk: one JSON file each, written atomically, refused when edited."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from analysis.forecast import Forecast, KeptOut, Measured, Outcome, UsedPoint, frozen_part
from analysis.target import Target
from gopher.errors import UsageError
from gopher.identity import content_hash
from gopher.record import write_atomic


def save(forecast: Forecast, folder: Path | str) -> Path:
    """Write folder/<id>.json. The same prediction frozen again keeps the first file (its time is the earlier one)."""
    path = Path(folder) / f"{forecast.id}.json"
    if path.exists():
        held = load(path)
        if held.sha256 != forecast.sha256:
            forecast = replace(
                held,
                outcome=forecast.outcome or held.outcome,
                earlier_outcomes=forecast.earlier_outcomes or held.earlier_outcomes,
            )
        if held == forecast:
            return path
    write_atomic(path, json.dumps(asdict(forecast), indent=2, sort_keys=True, allow_nan=False) + "\n")
    return path


def load(path: Path | str) -> Forecast:
    """A forecast from its file; `UsageError` when what was frozen has been changed since."""
    try:
        forecast = parsed(json.loads(Path(path).read_text("utf-8")))
    except FileNotFoundError:
        raise UsageError(
            f"there is no forecast {Path(path).name}; `gopher forecast` lists those of the sweep"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UsageError(
            f"{Path(path).name} is no forecast as this version writes them; restore the file or delete it and freeze again"
        ) from None
    if content_hash(frozen_part(forecast)) != forecast.sha256:
        raise UsageError(
            f"forecast {forecast.id} was changed after it was frozen; restore the file or delete it and freeze again"
        )
    return forecast


def parsed(raw: dict[str, Any]) -> Forecast:
    """A forecast from its JSON object."""
    outcome = raw["outcome"]
    return Forecast(
        **raw
        | {
            "target": Target(**raw["target"] | {"run_keys": tuple(raw["target"]["run_keys"])}),
            "intervals": {level: (low, high) for level, (low, high) in raw["intervals"].items()},
            "reasons": tuple(raw["reasons"]),
            "points": tuple(UsedPoint(**p) for p in raw["points"]),
            "kept_out": tuple(KeptOut(**k) for k in raw["kept_out"]),
            "outcome": None if outcome is None else parsed_outcome(outcome),
            "earlier_outcomes": tuple(parsed_outcome(o) for o in raw["earlier_outcomes"]),
        }
    )


def parsed_outcome(raw: dict[str, Any]) -> Outcome:
    return Outcome(**raw | {"runs": tuple(Measured(**r) for r in raw["runs"])})


def load_all(folder: Path | str) -> list[Forecast]:
    """All forecasts of a folder, oldest first; an absent folder holds none."""
    return sorted((load(path) for path in Path(folder).glob("*.json")), key=lambda f: (f.created_at, f.id))

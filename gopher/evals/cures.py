"""What to do about a task that cannot be read: the reason with the command that gets its data, in one sentence."""

import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from gopher.errors import did_you_mean

ON_HUB = re.compile(r"'([\w.-]+/[\w.-]+)' on the Hub|(?:Repository Not Found|cached).*datasets/([\w.-]+/[\w.-]+)")
NO_FILE = re.compile(
    r"Unable to find '([^']+)'|No such file or directory: '([^']+)'|Couldn't find any data file at (\S+?)\.?$"
)
PROBE_SECONDS = 3.0
LOCAL_KINDS = ("json", "csv", "parquet", "arrow", "text")  # of files that a task names itself


def cured(name: str, error: BaseException, entry: Any, known: Sequence[str]) -> str:
    """Why the task `name` could not be read and what to do; `entry` is the harness's of it, None when no task is called so."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if entry is None and "not a registered" in reason:
        listed = "`lm-eval ls tasks` lists the harness's, tasks_path=DIR adds your own"
        return f"no task, group or tag has this name ({listed}){did_you_mean(name, list(known))}"
    if found := ON_HUB.search(reason):
        hub = found[1] or found[2]
        how = f'python -c "import datasets; datasets.load_dataset({", ".join(map(repr, hub_names(entry, hub)))})"'
        return f"{hub} is not on this machine ({reason}); with network `{how}` gets it, or give local files with tasks_path"
    if found := NO_FILE.search(reason):
        file = next(filter(None, found.groups()))
        return f"its file {file} does not exist; put it there, or correct data_files in {entry.yaml_path if entry else name}"
    return reason


def hub_names(entry: Any, hub: str) -> list[str]:
    """The data set and, where the task's own configuration names one, its part."""
    config = configuration(entry) if entry else {}
    part = config.get("dataset_name") if config.get("dataset_path") == hub else None
    return [hub, str(part)] if part else [hub]


def configuration(entry: Any) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        return dict(load_yaml(Path(entry.yaml_path), resolve_func=False)) if entry.yaml_path else {}
    except Exception:  # of a file that was not readable in the first place
        return {}


def may_need_hub(entry: Any) -> bool:
    """Whether the data of a task, of a group's or of one that is not known here may come from the Hub."""
    return entry is None or configuration(entry).get("dataset_path") not in LOCAL_KINDS


def offline_if_unreachable() -> bool:
    """Spares the Hub's libraries their long tries when it cannot be reached: True when they were told to work offline."""
    import datasets
    import huggingface_hub.constants as hub

    if hub.HF_HUB_OFFLINE:
        return True
    if any(os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")):
        return False  # the proxy knows
    address = urlparse(hub.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), PROBE_SECONDS).close()
    except OSError:
        hub.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    return hub.HF_HUB_OFFLINE

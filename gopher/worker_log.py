"""What a worker says beside its metrics, kept with the run: output, log lines, warnings, the traceback of a crash, even of a
native one."""

import contextlib
import faulthandler
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

LIMIT_BYTES = 5 * 2**20  # a longer log starts afresh; the former one is kept beside it


@contextlib.contextmanager
def worker_log(run_folder: Path, who: str) -> Iterator[None]:
    """Send stdout, stderr, log lines and warnings to runs/<key>/log/<who>.log while inside; an exception is written there and goes on."""
    path = run_folder / "log" / f"{who}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LIMIT_BYTES:
        os.replace(path, path.with_suffix(".old.log"))
    with open(path, "a", encoding="utf-8", buffering=1) as file:
        print(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} process {os.getpid()} takes the run", file=file)
        faulthandler.enable(file)
        lines = logging.StreamHandler(file)
        lines.setFormatter(logging.Formatter("%(message)s"))
        logger = logging.getLogger("gopher")
        level = logger.level
        logger.setLevel(logging.INFO)
        logger.addHandler(lines)
        spread, logger.propagate = logger.propagate, False  # a handler of Ray's would write each line once more
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file), warnings.catch_warnings():
                warnings.simplefilter("default")
                warnings.showwarning = lambda message, kind, name, line, *_: print(
                    warnings.formatwarning(message, kind, name, line), end="", file=file
                )
                yield
        except BaseException:
            traceback.print_exc(file=file)
            raise
        finally:
            logger.removeHandler(lines)
            logger.propagate = spread
            logger.setLevel(level)
            faulthandler.enable(sys.__stderr__ or 2)

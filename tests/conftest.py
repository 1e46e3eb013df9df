"""One thread per process: the suite shares two cores, and tiny models are fastest on one."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
settings.register_profile("suite", deadline=None)  # a busy machine is no failing property
settings.load_profile("suite")
sys.path.insert(0, str(Path(__file__).parent))  # for `studies`


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a trained tiny rung; read only."""
    from rungs import trained_run

    return trained_run(tmp_path_factory.mktemp("tiny"))

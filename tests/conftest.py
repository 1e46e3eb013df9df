"""One thread per process: the suite shares two cores, and tiny models are fastest on one."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
try:
    from hypothesis import settings
except ModuleNotFoundError:  # a GPU machine has torch and pytest, and runs the tests that need no more
    pass
else:
    settings.register_profile("suite", deadline=None)  # a busy machine is no failing property
    settings.load_profile("suite")
sys.path.insert(0, str(Path(__file__).parent))  # for `studies`


LONG = (
    "test_launch.py",
    "test_chaos.py",
    "test_deploy.py",
    "test_train.py",
    "test_trouble.py",
    "test_shard.py",
    "test_checkpoint.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: two processes share the suite by files, and one would else wait for the other's last."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a trained tiny rung; read only."""
    from rungs import trained_run

    return trained_run(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def own_run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_run` to write to, beside the tokenizer it was trained with."""
    shutil.copytree(tiny_run.parents[1] / "tokenizers", tmp_path / "root" / "tokenizers")
    return shutil.copytree(tiny_run, tmp_path / "root" / "runs" / tiny_run.name)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The mixture of the tiny model and its token shards; read only."""
    from studies import tiny_shards

    return tiny_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="session")
def finished(shards: tuple[Any, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a run that nothing disturbed; read only."""
    from training import run_in

    from gopher.train import train

    folder = run_in(tmp_path_factory.mktemp("runs") / "undisturbed", shards)
    train(folder)
    return folder

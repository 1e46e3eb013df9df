"""A detached launch outlives its terminal and says how to follow and stop it; a job server that isn't there is one sentence;
a launch whose Ray was lost begins anew with the same words."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gopher.errors import SetupError, UsageError
from sweeps.backends import LOST_TIMES
from sweeps.backends.ray_jobs import entrypoint
from sweeps.background import MAX_LOST, back_off, command, detach, job_words, submit_job, without_password
from sweeps.compose import compose, hydra_session
from sweeps.launched import command_line
from sweeps.lease import held
from sweeps.settings import ClusterSettings, Settings, TrackingSettings, settings_of

ADDRESS = "postgresql+psycopg://me:hunter2@127.0.0.1:9/db"


@pytest.mark.parametrize("word", ["detach=true", "+detach=true", "++detach=true"])
def test_a_detached_launch_does_not_detach_again(word: str) -> None:
    words = command(["sweep=demo", word, "axes.seed=[1,2]"])
    assert words == [sys.executable, "-m", "sweeps.cli", "launch", "sweep=demo", "axes.seed=[1,2]", "detach=false"]


def test_the_next_command_has_the_words_of_the_person() -> None:
    words = ["sweep=demo", "name=k", "axes.seed=[1,2]", "++detach=true", "format=json", "watch=false"]
    secret = Settings(output_root="out", name="k", tracking=TrackingSettings(uri=ADDRESS))
    for own in (words, without_password(words, secret)[0]):
        assert command_line("stop", own) == "gopher stop sweep=demo name=k 'axes.seed=[1,2]'"


def test_a_launch_that_ends_at_once_is_told_with_its_words_and_its_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    settings = Settings(output_root=str(tmp_path), name="demo", format="json")
    assert detach(["sweep=nowhere"], settings, said.append) == 2
    assert "sweep=nowhere is not a known choice" in said[0] and "background" not in said[0]
    assert json.loads(capsys.readouterr().out) == {"sweep": "demo", "detached": None, "exit_code": 2}
    assert "nowhere" in (tmp_path / "sweeps" / "demo" / "launch.log").read_text()


def test_a_sweep_that_is_being_launched_is_not_detached_a_second_time(tmp_path: Path) -> None:
    settings = Settings(output_root=str(tmp_path), name="demo")
    with (
        held(settings.sweep_dir, "demo"),
        pytest.raises(SetupError, match=f"being launched by process {os.getpid()}"),
    ):
        detach(["sweep=demo"], settings, print)


def test_a_password_is_in_no_command_line(tmp_path: Path) -> None:
    settings = Settings(output_root=str(tmp_path), name="demo", tracking=TrackingSettings(uri=ADDRESS))
    words, environment = without_password(["sweep=demo", f"++tracking.uri={ADDRESS}"], settings)
    assert "hunter2" not in " ".join(words) and environment == {"GOPHER_TRACKING_URI": ADDRESS}
    with hydra_session(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOPHER_TRACKING_URI", ADDRESS)
        assert settings_of(compose(words).tree).tracking.uri == ADDRESS
    plain = Settings(output_root=str(tmp_path), name="demo", tracking=TrackingSettings(uri="http://127.0.0.1:1"))
    assert without_password(["tracking.uri=http://127.0.0.1:1"], plain) == (["tracking.uri=http://127.0.0.1:1"], {})


def test_a_job_gets_no_password_and_the_folder_that_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cluster = ClusterSettings(address="127.0.0.1:1")
    secret = Settings(output_root="out", name="demo", cluster=cluster, tracking=TrackingSettings(uri=ADDRESS))
    with pytest.raises(UsageError, match="tracking.uri holds a password"):
        submit_job(["sweep=demo", f"tracking.uri={ADDRESS}"], secret)
    safe = "tracking.uri=${oc.env:MLFLOW_URI}"
    words = job_words([safe, "output_root=out", "+detach=true"], secret)
    assert words == [safe, "detach=false", f'output_root="{tmp_path / "out"}"']


@pytest.mark.parametrize("has_it", [True, False])
def test_a_job_runs_by_this_python_where_the_head_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_it: bool
) -> None:
    """The head's shell for real: in the caller's folder, with the words unharmed; else by the `python` of its PATH."""
    folder = tmp_path / "it's here"
    for place, name in ((folder, "python own"), (tmp_path, "python")):
        place.mkdir(exist_ok=True)
        (place / name).write_text(f'#!/bin/sh\nprintf "%s|" "$0" "$PWD" "$@" >> {tmp_path}/said\n')
        (place / name).chmod(0o755)
    monkeypatch.setattr("sys.executable", str(folder / ("python own" if has_it else "missing")))
    command = entrypoint(["data.path=a b", "tracking.uri=${oc.env:MLFLOW_URI}"], folder)
    subprocess.run(command, shell=True, check=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, cwd="/")
    python = folder / "python own" if has_it else tmp_path / "python"
    words = ["-m", "sweeps.cli", "launch", "data.path=a b", "tracking.uri=${oc.env:MLFLOW_URI}"]
    said = (tmp_path / "said").read_text()
    assert said.endswith("|".join([str(python), str(folder), *words, ""]))


def test_a_missing_job_server_is_told_with_the_cure(tmp_path: Path) -> None:
    code = (
        "from sweeps.backends.ray_jobs import submit\nfrom gopher.errors import SetupError\n"
        "try: submit(['sweep=demo'], 'auto')\nexcept SetupError as error: print(error)"
    )
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "no Ray job server answers at http://127.0.0.1:1" in done.stdout and "ray[default]" in done.stdout, (
        done.stderr
    )


def test_a_lost_ray_is_waited_for_a_bounded_number_of_times() -> None:
    code = "from sweeps.background import start_again; print(start_again(['sweep=demo'], None))"
    environment = {"PATH": "/usr/bin:/bin", LOST_TIMES: str(MAX_LOST)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "False\n"


def test_the_pause_after_a_lost_ray_ends_with_a_wish_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOST_TIMES, "40")
    answers = iter([False, True])
    began = time.monotonic()
    back_off(lambda: next(answers))
    assert time.monotonic() - began < 5

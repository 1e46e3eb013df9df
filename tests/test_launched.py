"""The record of a launch names the same runs, answers only to the same words, and is passed over when it cannot be read."""

import json
import shlex
from pathlib import Path

import pytest
from studies import write_text

from gopher.errors import UsageError
from gopher.record import FINISHED, RunFolder, RunState
from sweeps import launched
from sweeps.cli import run_verb
from sweeps.compose import compose, hydra_session
from sweeps.settings import Settings, settings_of
from sweeps.study import study_of
from sweeps.verbs import status
from sweeps.verbs.launch import report_end


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    text = write_text(tmp_path / "text")
    return ["sweep=demo", "data=local", f"data.path={text}", "rungs=[54k,84k]", f"output_root={tmp_path / 'out'}"]


def test_the_record_gives_back_the_specs(words: list[str], tmp_path: Path) -> None:
    study, settings = study_of(words), Settings(output_root=str(tmp_path / "out"), name="demo")
    assert launched.specs_of(words, settings) is None
    launched.keep(study, words, settings)
    assert launched.specs_of(words, settings) == study.specs
    assert launched.specs_of([*words, "format=json", "watch=true", "tracking.required=false"], settings) == study.specs
    assert launched.specs_of([*words[:-1], f'output_root="{tmp_path}/out/"'], settings) == study.specs
    assert launched.specs_of([*words, "axes.seed=[1]"], settings) is None
    (settings.sweep_dir / "sweep.json").write_text('{"words": [')
    assert launched.specs_of(words, settings) is None


def test_a_sweep_launched_by_name_is_found_by_it(words: list[str], tmp_path: Path) -> None:
    """In the words of its launch, those said again in their place; a config keeps its name."""
    named, root = [*words, "name=mine"], str(tmp_path / "out")
    settings = Settings(output_root=root, name="mine")
    launched.keep(study_of(named), named, settings)
    said = ["freeze", "sweep=mine", f"output_root={root}", "format=json", "rungs=[54k]"]
    found = launched.as_launched(said, ["demo"], "elsewhere")
    assert found == ["freeze", *named[:3], "rungs=[54k]", *named[4:], "format=json"]
    again = launched.as_launched(["sweep=mine"], ["demo"], root)
    assert again == named and launched.specs_of(again, settings) == study_of(named).specs
    assert launched.as_launched(["sweep=mine"], ["demo"], "elsewhere") == ["sweep=mine"]
    assert launched.as_launched(["sweep=mine"], ["mine"], root) == ["sweep=mine"]


def test_a_word_that_a_launch_said_twice_counts_once_and_quotes_are_read(words: list[str], tmp_path: Path) -> None:
    root = tmp_path / "out, quoted"
    twice = ["rungs=[84k]", *words[:4], "name=mine", "axes.seed=[1]", "axes.seed=[2]"]
    launched.keep(study_of([*words, "name=mine"]), twice, Settings(output_root=str(root), name="mine"))
    said = ["sweep='mine'", f'output_root="{root}"']
    assert launched.as_launched([*said, "axes.seed=[3]"], ["demo"], "elsewhere") == [
        *words[:4],
        "name=mine",
        "axes.seed=[3]",
        said[1],
    ]
    assert launched.as_launched(said, ["demo"], "elsewhere")[-2:] == ["axes.seed=[2]", said[1]]


def test_the_command_line_knows_a_launched_name(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [*words, "name=mine"]
    launched.keep(study_of(named), named, Settings(output_root=str(tmp_path / "out"), name="mine"))
    assert run_verb("plan", ["sweep=mine", f"output_root={tmp_path / 'out'}", "format=json"]) == 0
    assert json.loads(capsys.readouterr().out)["sweep"] == "mine"


def test_empty_braces_empty_a_setting() -> None:
    """Hydra alone would merge nothing into it."""
    with hydra_session():
        assert (
            compose(["sweep=demo"]).tree["extra_seeds"]
            and compose(["sweep=demo", "extra_seeds={}"]).tree["extra_seeds"] == {}
        )
        assert compose(["sweep=demo", "extra_seeds={54k:[3]}"]).tree["extra_seeds"]["54k"] == [3]


def test_status_of_a_launched_sweep_needs_no_text(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with hydra_session():
        settings = settings_of(compose(words).tree)
    launched.keep(study_of(words), words, settings)
    gone = Path(words[2].partition("=")[2])
    for file in gone.rglob("*.txt"):
        file.unlink()
    with pytest.raises(UsageError):
        study_of(words)
    with hydra_session():
        assert status.run(compose, words) == 0
    assert "54k" in capsys.readouterr().out


def test_the_end_of_a_launch_as_json_and_in_the_words_of_the_person(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*words, "name=k", "format=json"]
    study = study_of(words)
    with hydra_session():
        settings = settings_of(compose(words).tree)
    for spec in study.specs:
        state = RunState(state=FINISHED, step=spec.steps, val_loss=4.0)
        RunFolder(settings.run_dir(spec.key)).write_state(state)
    assert report_end(study, settings, words) == 0
    out, err = capsys.readouterr()
    assert [r["state"] for r in json.loads(out)["runs"]] == [FINISHED] * len(study.runs)
    named = " ".join(shlex.quote(w) for w in words[:-1])
    assert f"gopher fit {named}   gopher report {named}" in err.replace("\n", " ")


def test_every_setting_of_the_config_is_read(words: list[str]) -> None:
    with hydra_session():
        assert settings_of(compose([*words, "gate=ladder"]).tree).gate == "ladder"

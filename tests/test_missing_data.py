"""A task that cannot be read says so in one sentence with what to do: a command that gets its data, its file, or the name meant."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from gopher.errors import SetupError
from gopher.evals import cures, fetch
from gopher.evals.cures import cured
from gopher.evals.tasks import data

OWN = Path(data.__file__).parent


def test_a_wrong_name_gets_the_nearest() -> None:
    error = KeyError("Spec 'hellaswagg' is not a registered task/group/tag name or valid YAML path")
    told = cured("hellaswagg", error, None, ["hellaswag", "piqa"])
    assert "did you mean 'hellaswag'?" in told and "lm-eval ls tasks" in told and "\n" not in told


def test_a_missing_file_is_named_with_the_yaml_that_names_it() -> None:
    entry = SimpleNamespace(yaml_path=Path("/t/gone.yaml"))
    told = cured("gone", FileNotFoundError("Unable to find '/nowhere/all.jsonl'"), entry, [])
    assert told == "its file /nowhere/all.jsonl does not exist; put it there, or correct data_files in /t/gone.yaml"


def test_data_of_the_hub_come_by_a_command_with_their_part(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed; pip install gopher-sweeps[evals]")
    (tmp_path / "base.yaml").write_text("dataset_path: some/set\nprocess_docs: !function code.of\n")
    (tmp_path / "t.yaml").write_text("include: base.yaml\ntask: t\ndataset_name: part-1\n")
    entry = SimpleNamespace(yaml_path=tmp_path / "t.yaml")
    error = ConnectionError("Couldn't reach 'some/set' on the Hub (LocalEntryNotFoundError)")
    assert "load_dataset('some/set', 'part-1')" in cured("t", error, entry, [])
    assert "load_dataset('some/set')" in cured("t", error, SimpleNamespace(yaml_path=None), [])


def test_an_unreachable_hub_is_found_out_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub.constants as hub

    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for module in (hub, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert cures.offline_if_unreachable() and datasets.config.HF_HUB_OFFLINE
    with pytest.raises(ConnectionError, match="on the Hub"):
        datasets.load_dataset("some/set")


def test_public_files_become_the_rows_that_tasks_read(tmp_path: Path) -> None:
    texts = {
        "a.tsv": 'sentid\tsentence\nx.1\tA "word".\n',
        "p.json": '[["nurse", 0.0, -1.0]]',
        "s.txt": "one\n\ntwo\n",
        "r.jsonl": '{"claim": "c"}\n',
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        fetch.fetch(f"out/{name}l", tmp_path, (tmp_path / name).as_uri())
    rows = {name: [json.loads(x) for x in (tmp_path / "out" / f"{name}l").read_text().splitlines()] for name in texts}
    assert rows["p.json"] == [{"profession": "nurse", "definitional": 0.0, "stereotypical": -1.0}]
    assert rows["s.txt"] == [{"text": "one"}, {"text": "two"}] and rows["r.jsonl"] == [{"claim": "c"}]
    assert rows["a.tsv"][0]["sentid"] == "x.1"
    with pytest.raises(SetupError, match=r"none.tsv cannot be read .*by hand"):
        fetch.fetch("x.jsonl", tmp_path, (tmp_path / "none.tsv").as_uri())


def test_every_task_of_ours_has_a_command_or_says_that_there_is_none() -> None:
    without = set()
    for path in OWN.glob("*.yaml"):
        kwargs = yaml.load(path.read_text().replace("!function", ""), yaml.SafeLoader).get("dataset_kwargs", {})
        files = [kwargs[key] for key in ("file", "statistics") if key in kwargs]
        hub = kwargs.get("hub") or "data.race" in path.read_text() or "real-toxicity" in path.read_text()
        if files and not hub and not all(f in fetch.SOURCES or "civil" in f for f in files):
            without.add(path.stem)
    assert without == {"curation_corpus", "dialect_aa", "multifc"}


def test_the_fetch_command_wants_a_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("GOPHER_EVAL_DATA", raising=False)
    assert fetch.main(["winogender/all_sentences.jsonl"]) == 2
    monkeypatch.setenv("GOPHER_EVAL_DATA", "/tmp")
    assert fetch.main(["winogender/all_sentence.jsonl"]) == 2
    assert "did you mean 'winogender/all_sentences.jsonl'?" in capsys.readouterr().err


def test_a_file_that_is_not_what_it_was_does_not_keep_the_others_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jsonl").write_text("<html>moved</html>")
    (tmp_path / "good.jsonl").write_text('{"claim": "c"}\n')
    monkeypatch.setenv("GOPHER_EVAL_DATA", str(tmp_path / "out"))
    monkeypatch.setattr(fetch, "SOURCES", {name: (tmp_path / name).as_uri() for name in ("bad.jsonl", "good.jsonl")})
    assert fetch.main([]) == 3
    told = capsys.readouterr()
    assert "bad.jsonl cannot be read" in told.err and "good.jsonl: 1 rows" in told.out
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["good.jsonl"]


def test_only_tasks_of_local_files_are_read_without_asking_for_the_hub(tmp_path: Path) -> None:
    (tmp_path / "local.yaml").write_text("task: local\ndataset_path: json\n")
    (tmp_path / "hub.yaml").write_text("task: hub\ndataset_path: some/set\n")
    entries = [SimpleNamespace(yaml_path=tmp_path / f"{name}.yaml") for name in ("local", "hub")]
    assert [cures.may_need_hub(e) for e in (*entries, SimpleNamespace(yaml_path=OWN / "race_h.yaml"), None)] == [
        False, True, True, True,
    ]  # fmt: skip

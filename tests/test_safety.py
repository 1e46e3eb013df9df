"""Nothing that a config, a name, an address or a planted file says can run code, leave the output root or show a secret."""

import ast
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from studies import TINY, demo_spec

from gopher.errors import GopherError, UsageError
from gopher.record import RunFolder
from gopher.spec import Placement
from sweeps.compose import compose, hydra_session
from sweeps.provenance import provenance
from sweeps.redact import hide_secrets, redacted
from sweeps.settings import settings_of
from sweeps.study import load_study

ROOT = Path(__file__).parents[1]
SECRET = "hunter2-p/w@x"
ADDRESS = f"postgresql+psycopg://me:{SECRET}@127.0.0.1:9/db"


def gopher(cwd: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-m", "sweeps.cli", *words], cwd=cwd, capture_output=True, text=True, env=env
    )


@pytest.mark.parametrize(
    "words",
    [
        ["+optim._target_=os.system"],
        ["axes={_target_: os.system}"],
        ["hydra.run.dir=x"],
        ["hydra/launcher=basic"],
        ["hydra.searchpath=[file:///tmp]"],
        ["name=${oc.env:GOPHER_SECRET}"],
        ["name=${hydra:runtime.cwd}"],
        ["name=${${name}:GOPHER_SECRET}"],
        ["name=\\${oc.env:GOPHER_SECRET}"],
        ["data=${oc.env:GOPHER_SECRET}"],
        ["output_root=${oc.decode:GOPHER_SECRET}"],
        ["axes.optim.lr=['${oc.env:GOPHER_SECRET}']"],
        ["tracking.uri=${oc.env:GOPHER_SECRET,${oc.env:HOME}}"],
        ["name=../../x"],
        ["name=.."],
        ["name=/etc"],
        ["name='x;touch pwned'"],
        ["rung=.."],
        ["rungs=[../../etc/passwd]"],
        ["sweep=../../../etc/passwd"],
        ["data=/etc/passwd"],
        ["extra_seeds={../x: [1]}"],
    ],
    ids=str,
)
def test_what_reaches_beyond_the_config_is_refused(words: list[str], tmp_path: Path) -> None:
    os.environ["GOPHER_SECRET"] = SECRET
    with hydra_session(), pytest.raises(UsageError) as caught:
        load_study(compose, [*words, f"output_root={tmp_path / 'out'}"])
    assert SECRET not in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*"))


def test_a_config_file_is_held_to_the_same_rules(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: ${oc.env:HOME}\n")
    with hydra_session(tmp_path), pytest.raises(UsageError, match="may only refer to another key"):
        compose([])
    (tmp_path / "config.yaml").write_text("data: {_target_: os.system}\n")
    with hydra_session(tmp_path), pytest.raises(UsageError, match="no class is ever made"):
        compose([])


@pytest.mark.parametrize("field", ["rung", "tokenizer_key", "data_key"])
def test_names_in_specs_stay_in_their_folder(field: str) -> None:
    values = vars(demo_spec())
    for name in ("..", "../x", "/etc", "a/b", "", "a;b", "a b"):
        with pytest.raises(UsageError, match=field):
            type(demo_spec())(**{**values, field: name})


def test_shell_characters_do_nothing(tmp_path: Path) -> None:
    nasty = "out; touch pwned $(touch pwned) `touch pwned` | touch pwned && touch pwned"
    done = gopher(tmp_path, "status", f"output_root='{nasty}'")
    assert done.returncode == 0, done.stderr
    assert "pwned" not in [p.name for p in tmp_path.rglob("*")]


def test_no_shell_no_eval_in_the_source() -> None:
    for path in (p for package in ("gopher", "sweeps", "analysis") for p in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                named = ast.unparse(node.func)
                assert named not in ("eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads"), path
                assert not any(k.arg == "shell" for k in node.keywords), path
                if named == "torch.load":
                    assert "weights_only=True" in ast.unparse(node), path


def test_a_password_may_come_from_the_environment_and_is_shown_nowhere(tmp_path: Path) -> None:
    words = ["tracking=server", "tracking.uri=${oc.env:GOPHER_URI}"]
    shown = gopher(tmp_path, "plan", "--cfg", *words, GOPHER_URI=ADDRESS)
    assert shown.returncode == 0 and yaml.safe_load(shown.stdout)["tracking"]["uri"].endswith(":***@127.0.0.1:9/db")
    looked = gopher(tmp_path, "doctor", *words, GOPHER_URI=ADDRESS)
    assert looked.returncode == 1 and "does not answer" in looked.stdout
    failed = gopher(tmp_path, "fit", "sweep=demo", *words, GOPHER_URI=f"nonsense://me:{SECRET}@127.0.0.1:9/db")
    assert failed.returncode in (1, 2, 3), failed.stdout
    for text in (shown.stdout, shown.stderr, looked.stdout, looked.stderr, failed.stdout, failed.stderr):
        assert "hunter2" not in text and "p/w" not in text


def test_what_is_kept_with_a_run_has_no_password(tmp_path: Path) -> None:
    with hydra_session():
        tree = compose([*TINY, "tracking=server", f"tracking.uri={ADDRESS}"]).tree
    settings = settings_of(tree)
    assert settings.tracking_uri == ADDRESS and SECRET not in repr(settings)
    folder = RunFolder(tmp_path / "run")
    folder.create(demo_spec(), Placement(data_dir="data"), provenance(tree))
    assert not [p for p in folder.path.rglob("*") if p.is_file() and "hunter2" in p.read_text()]


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("at https://TOKEN@host/x", "at https://***@host/x"),
        ("mysql://h/db?password=abc&y=1", "mysql://h/db?password=***&y=1"),
        ("host=h password=ab/c user=me", "host=h password=*** user=me"),
        ("host=h password = 'a b\\'c' user=me", "host=h password = *** user=me"),
        ("password=abc", "password=***"),
        (
            "x:///?odbc_connect=DRIVER%3DX%3BPWD%3Da%25b%3BUID%3Dme",
            "x:///?odbc_connect=DRIVER%3DX%3BPWD%3D***%3BUID%3Dme",
        ),
        ("DRIVER=X;PWD={a;b c};UID=me", "DRIVER=X;PWD=***;UID=me"),
        ("x://me:a b'c\"e@h:5/db is down, ask a@b.c", "x://me:***@h:5/db is down, ask a@b.c"),
        ("x://h:5000 is down, ask a@b.c", "x://h:5000 is down, ask a@b.c"),
        ("tokens=20 launch.max_attempts=3", "tokens=20 launch.max_attempts=3"),
        ("http://h:5000/a", "http://h:5000/a"),
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        ("a@b.c wrote to http://h:1", "a@b.c wrote to http://h:1"),
    ],
)
def test_secrets_are_hidden_and_nothing_else(text: str, safe: str) -> None:
    assert hide_secrets(text) == safe
    assert redacted({"k": [text], "db_password": "x", "tokens": 3}) == {"k": [safe], "db_password": "***", "tokens": 3}


def test_a_pickle_planted_as_checkpoint_does_not_run(tmp_path: Path) -> None:
    """Whatever name a file below checkpoints/ has, the program that reads the folder does not unpickle it."""
    from gopher.checkpoint import load_for_inference

    class Trap:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return os.mkdir, (str(tmp_path / "ran"),)

    folder = RunFolder(tmp_path / "run")
    folder.create(demo_spec(), Placement(data_dir="data"), {})
    planted = folder.checkpoints / f"{20:010d}"
    planted.mkdir(parents=True)
    for name in (".metadata", "__0_0.distcp", "model.pt", "complete.json"):
        (planted / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(GopherError), pytest.warns(UserWarning):
        load_for_inference(folder.path)
    assert not (tmp_path / "ran").exists()


def test_services_stay_on_loopback_and_ray_keeps_its_token() -> None:
    from sweeps.serve import server_command

    assert server_command(5000)[server_command(5000).index("--host") + 1] == "127.0.0.1"
    source = (ROOT / "sweeps" / "backends" / "ray.py").read_text("utf-8")
    assert "AUTH_MODE" not in source or '"disabled"' not in source
    assert "0.0.0.0" not in "".join(p.read_text("utf-8") for p in (ROOT / "sweeps").rglob("*.py"))

"""The files in deploy/ keep the rules of their README (no privilege, no password, token authentication), and the driver
command in each of them, taken word for word and run by a shell, trains a small sweep to its end."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from studies import TINY, write_text

from gopher.record import FINISHED, RunFolder

DEPLOY = Path(__file__).parents[1] / "deploy"
KUBERAY, SLURM, SKYPILOT = DEPLOY / "kuberay-rayjob.yaml", DEPLOY / "slurm.sbatch", DEPLOY / "skypilot.yaml"


def ray_job() -> dict:
    documents = list(yaml.safe_load_all(KUBERAY.read_text("utf-8")))
    return next(d for d in documents if d["kind"] == "RayJob")


def shell_script(file: Path) -> str:
    """The shell text that holds the file's driver command."""
    if file == KUBERAY:
        return ray_job()["spec"]["entrypoint"].removeprefix("bash -c '").removesuffix("'")
    return yaml.safe_load(file.read_text("utf-8"))["run"] if file == SKYPILOT else file.read_text("utf-8")


def driver_command(file: Path) -> str:
    (command,) = re.findall(r"^\s*(gopher launch [^\n]*)$", shell_script(file), flags=re.MULTILINE)
    return command


@pytest.mark.parametrize("file", [SLURM, SKYPILOT, KUBERAY], ids=lambda f: f.stem)
def test_shell_text_parses(file):
    done = subprocess.run(["bash", "-n"], input=shell_script(file), text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_the_job_has_what_kuberay_needs():
    job = ray_job()
    assert job["apiVersion"] == "ray.io/v1"
    cluster = job["spec"]["rayClusterSpec"]
    locked = (Path(__file__).parents[1] / "requirements.lock").read_text("utf-8")
    assert f"ray=={cluster['rayVersion']}\n" in locked
    assert cluster["authOptions"] == {"mode": "token"}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    claims = {d["metadata"]["name"] for d in yaml.safe_load_all(KUBERAY.read_text()) if d["kind"] != "RayJob"}
    for group in groups:
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        volumes = {v["name"]: v for v in pod["volumes"]}
        assert volumes["study"]["persistentVolumeClaim"]["claimName"] in claims
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert {m["name"] for m in container["volumeMounts"]} <= set(volumes)
            assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_batch_file_asks_for_its_resources_before_it_runs_anything():
    lines = SLURM.read_text("utf-8").splitlines()
    asked = [i for i, line in enumerate(lines) if line.startswith("#SBATCH ")]
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert asked and max(asked) < first_command  # Slurm reads no line behind the first command
    assert {"--nodes", "--gpus-per-node", "--time", "--signal"} <= {lines[i].split()[1].split("=")[0] for i in asked}


def test_the_skypilot_task_has_known_fields_only():
    task = yaml.safe_load(SKYPILOT.read_text("utf-8"))
    assert set(task) <= {"name", "num_nodes", "resources", "workdir", "envs", "secrets", "file_mounts", "setup", "run"}
    assert task["secrets"]["RAY_AUTH_TOKEN"] is None  # SkyPilot refuses to start until it is given
    assert task["envs"]["OUTPUT_ROOT"] in task["file_mounts"]


@pytest.mark.parametrize("file", sorted(DEPLOY.iterdir()), ids=lambda f: f.name)
def test_no_password_and_no_open_door(file):
    text = file.read_text("utf-8")
    assert not re.search(r"://[^\s/@]+:(?!PASSWORD@)[^\s/@]+@", text)
    assert "0.0.0.0" not in text
    assert "privileged: true" not in text
    assert "RAY_AUTH_MODE=disabled" not in text


def test_the_token_of_slurm_nodes_is_theirs_alone(tmp_path):
    """The script up to the Ray start, run for real: the token file is unreadable for others and gone at the end."""
    before, _, _ = SLURM.read_text("utf-8").partition("head_node=")
    script = before + 'stat -c "%a %s" "$RAY_AUTH_TOKEN_PATH"\n'
    environment = {**os.environ, "OUTPUT_ROOT": str(tmp_path / "study")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(["bash", "-c", script], env=environment, text=True, capture_output=True)
    assert (done.returncode, done.stdout) == (0, "600 65\n"), done.stderr
    assert list((tmp_path / "study").iterdir()) == []


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_the_driver_commands_train_a_sweep(tmp_path):
    """Each file's own words; only what a test must shrink is put behind them. All share one study: the first trains it,
    the others find it finished, which shows that the three name the same sweep."""
    write_text(tmp_path / "text")
    small = ["rungs=[54k]", "axes.seed=[0]", "'extra_seeds={54k: [], 121k: []}'", "data=local"]
    small += [f"data.path={tmp_path / 'text'}", *TINY, "cluster.address=local", "cluster.cpus=1"]
    environment = {
        **os.environ,
        "SWEEP": "demo",
        "OUTPUT_ROOT": str(tmp_path / "study"),
        "MLFLOW_URI": f"sqlite:///{tmp_path / 'study' / 'runs.db'}",
        "OVERRIDES": "",
        "head": "local",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    said = []
    for file in (SLURM, SKYPILOT, KUBERAY):
        command = f"{driver_command(file)} {' '.join(small)}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command], env=environment, text=True, capture_output=True
        )
        assert done.returncode == 0, f"{file.name}: {done.stderr}"
        said.append(done.stderr)
    (run,) = (tmp_path / "study" / "runs").iterdir()
    state = RunFolder(run).state()
    assert state is not None and state.state == FINISHED
    assert "1 of 1 runs to train" in said[0]
    assert all("nothing to start" in words for words in said[1:])

"""`gopher` trains on a machine that has torch, numpy and sentencepiece and nothing else of what the sweeps need."""

import subprocess
import sys
from pathlib import Path

import torch
from studies import demo_spec, write_text

SCRIPT = """
import sys

BLOCKED = ("ray", "mlflow", "hydra", "omegaconf", "pandas", "scipy", "matplotlib", "pyarrow", "lm_eval", "datasets", "rich",
           "zstandard", "sklearn", "sweeps", "analysis", "transformers")
sys.modules |= dict.fromkeys(BLOCKED)  # None: as if it were not installed
import dataclasses
from pathlib import Path
from gopher import corpus
from gopher.data import prepare
from gopher.record import RunFolder
from gopher.spec import DataSpec, Placement, RunSpec, TokenizerSpec
from gopher.spec_json import from_json
from gopher.train import train

root = Path(sys.argv[1])
data = DataSpec(kind="local", path=str(root / "text"), subsets=corpus.discover(root / "text"))
shards = prepare(data, TokenizerSpec(vocab_size=512), root)
spec = dataclasses.replace(from_json(RunSpec, (root / "spec.json").read_text()), data=data)
folder = RunFolder(root / "run")
folder.create(spec, Placement(data_dir=str(shards), micro_batch_sequences=8), {})
print(train(folder).state)
"""


def test_training_needs_only_torch_numpy_and_sentencepiece(tmp_path: Path) -> None:
    from gopher.spec_json import to_json

    write_text(tmp_path / "text", documents=10)
    (tmp_path / "spec.json").write_text(to_json(demo_spec(tokens=4096)))
    words = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and done.stdout.strip() == "finished", done.stderr[-2000:]
    assert tuple(map(int, torch.__version__.split("+")[0].split(".")[:2])) >= (2, 11)

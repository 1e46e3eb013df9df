"""Gets the public files behind our own tasks, as the JSON lines that they read, into the folder that GOPHER_EVAL_DATA names.

    GOPHER_EVAL_DATA=DIR python -m gopher.evals.fetch winogender/all_sentences.jsonl

Files of others under their own licences: read those where the addresses lead. What is on the Hub comes by itself.
"""

import csv
import io
import json
import os
import sys
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

from gopher.errors import SetupError, UsageError, did_you_mean
from gopher.record import write_atomic

GITHUB = "https://raw.githubusercontent.com"
SOURCES = {
    "dialect/sae_samples.jsonl": f"{GITHUB}/sophiegroenwold/AAVE_SAE_dataset/HEAD/sae_samples.txt",
    "fever/labelled_dev.jsonl": "https://fever.ai/download/fever/shared_task_dev.jsonl",
    "fever_symmetric/fever_symmetric_dev.jsonl": f"{GITHUB}/TalSchuster/FeverSymmetric/HEAD/symmetric_v0.2/fever_symmetric_dev.jsonl",
    "gender_occupation/professions.jsonl": f"{GITHUB}/tolga-b/debiaswe/HEAD/data/professions.json",
    "naturalquestions_open/NQ-open.dev.jsonl": f"{GITHUB}/google-research-datasets/natural-questions/HEAD/nq_open/NQ-open.dev.jsonl",
    "toxicity_madlibs/bias_madlibs_77k.jsonl": f"{GITHUB}/conversationai/unintended-ml-bias-analysis/HEAD/archive/unintended_ml_bias/eval_datasets/bias_madlibs_77k.csv",
    "winogender/all_sentences.jsonl": f"{GITHUB}/rudinger/winogender-schemas/HEAD/data/all_sentences.tsv",
    "winogender/occupations_stats.jsonl": f"{GITHUB}/rudinger/winogender-schemas/HEAD/data/occupations-stats.tsv",
}
PROFESSION = ("profession", "definitional", "stereotypical")  # of a row without names
TIMEOUT_SECONDS = 60.0


def fetch(file: str, root: Path, address: str) -> int:
    """Rows written to `root`/`file`. Raises `SetupError` where the address cannot be read."""
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as answer:
            text = answer.read().decode("utf-8")
        rows = rows_of(text, address.rpartition(".")[2])
    except (OSError, HTTPException, ValueError) as error:  # unreachable, cut off, or not what it was
        raise SetupError(f"{address} cannot be read ({error}); put {file} into {root} by hand, or try again") from None
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(root / file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows)


def rows_of(text: str, kind: str) -> list[dict[str, Any]]:
    """The rows of a jsonl, json (rows without names), csv, tsv or txt (a text a line) file."""
    if kind in ("csv", "tsv"):
        return list(csv.DictReader(io.StringIO(text), delimiter="\t" if kind == "tsv" else ","))
    if kind == "json":
        return [dict(zip(PROFESSION, row, strict=True)) for row in json.loads(text)]
    lines = [line for line in text.split("\n") if line.strip()]
    return [{"text": line.strip()} if kind == "txt" else json.loads(line) for line in lines]


def main(files: Sequence[str]) -> int:
    root = os.environ.get("GOPHER_EVAL_DATA")
    try:
        if not root:
            raise UsageError("GOPHER_EVAL_DATA is not set; set it to the folder that the files of tasks shall lie in")
        if unknown := [f for f in files if f not in SOURCES]:
            raise UsageError(
                f"no address is known for '{unknown[0]}'{did_you_mean(unknown[0], list(SOURCES))}; there are {', '.join(SOURCES)}"
            )
    except UsageError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    code = 0
    for file in files or SOURCES:
        try:
            print(f"{file}: {fetch(file, Path(root), SOURCES[file]):,} rows from {SOURCES[file]}")
        except SetupError as error:  # the others may be there
            print(error, file=sys.stderr)
            code = error.exit_code
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

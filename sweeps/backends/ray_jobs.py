"""Hands the driver to a Ray cluster's job server, so that it outlives the terminal."""

import os
import shlex
from collections.abc import Sequence

from gopher.errors import SetupError
from sweeps.backends.ray import import_ray


def submit(words: Sequence[str], address: str) -> str:
    """The id of the job that launches with these words on the cluster at `address` (auto, or host:port). Raises `SetupError` where no job server answers: it comes with `ray[default]` on the head node."""
    import_ray()
    from ray.job_submission import JobSubmissionClient

    command = shlex.join(["python", "-m", "sweeps.cli", "launch", *words])
    try:
        client = JobSubmissionClient(None if address == "auto" else address)
        return str(client.submit_job(entrypoint=command, runtime_env={}))
    except (ConnectionError, RuntimeError, ValueError) as error:
        named = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
        where = named or ("this machine" if address == "auto" else address)
        raise SetupError(
            f"no Ray job server answers at {where} ({str(error).splitlines()[0]}); start the head with `ray[default]` "
            "installed and set RAY_API_SERVER_ADDRESS=http://HEAD:8265, or launch without detach"
        ) from None

"""Hands the driver to a Ray cluster's job server, so that it outlives the terminal."""

import os
import shlex
from collections.abc import Sequence

from gopher.errors import SetupError
from sweeps.backends.ray import import_ray


def submit(words: Sequence[str]) -> str:
    """The job's id. Raises `SetupError` where no job server answers: it comes with `ray[default]` on the head node."""
    import_ray()
    from ray.job_submission import JobSubmissionClient

    command = shlex.join(["python", "-m", "sweeps.cli", "launch", *words])
    try:
        client = JobSubmissionClient()
        return str(client.submit_job(entrypoint=command, runtime_env={}))
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or "this machine"
        raise SetupError(
            f"no Ray job server answers at {where} ({str(error).splitlines()[0]}); start the head with `ray[default]` "
            "installed and set RAY_API_SERVER_ADDRESS=http://HEAD:8265, or launch without detach"
        ) from None

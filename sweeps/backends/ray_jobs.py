"""Hands the driver to a Ray cluster's job server, so that it outlives the terminal."""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gopher.errors import SetupError
from sweeps.backends.ray import import_ray
from sweeps.backends.ray_gang import own_sentence

SERVER, CLUSTER = "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"  # what Ray's client asks, in this order, before its argument


@dataclass(frozen=True, kw_only=True)
class SubmittedJob:
    """A job that the server at the URL `server` has taken, under Ray's name for it."""

    name: str
    server: str
    client: Any

    def exit_code(self) -> int | None:
        """What the driver has ended with, 1 where Ray could not start it; None while it runs or the server doesn't answer."""
        try:
            found = self.client.get_job_info(self.name)
        except (OSError, RuntimeError):
            return None
        if not found.status.is_terminal():
            return None
        code = found.driver_exit_code
        return (max(1, code) if code else 0) if code is not None else 1

    def output(self) -> str:
        """All that the driver has written; empty where the server doesn't tell."""
        try:
            return str(self.client.get_job_logs(self.name))
        except (OSError, RuntimeError):
            return ""


def entrypoint(words: Sequence[str], folder: Path) -> str:
    """The head's shell command for a launch with these words: in the same folder where the head has it, so that relative
    paths mean the same; by this very Python where the head has it with this package, else by the `python` there."""
    here, python = shlex.quote(str(folder)), shlex.quote(sys.executable)
    choose = f"cd {here} 2>/dev/null; python={python}; \"$python\" -c 'import sweeps' 2>/dev/null || python=python"
    return f'{choose}; exec "$python" {shlex.join(["-m", "sweeps.cli", "launch", *words])}'


def submit(words: Sequence[str], address: str) -> SubmittedJob:
    """The job that launches with these words on the cluster at `address` (auto, or host:port).

    Raises `SetupError` where no job server answers, which comes with `ray[default]` on the head node, or refuses the token.
    """
    ray = import_ray()
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
    from ray.job_submission import JobSubmissionClient

    if address != "auto":
        os.environ.pop(CLUSTER, None)  # may name another cluster, which this process asks nothing any more
    elif not {SERVER, CLUSTER} & os.environ.keys():
        # as `ray.init` does for a cluster of this machine, whose token is this user's own
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    where = os.environ.get(SERVER) or os.environ.get(CLUSTER) or ("this machine" if address == "auto" else address)
    try:
        client = JobSubmissionClient(None if address == "auto" else address)
        name = client.submit_job(entrypoint=entrypoint(words, Path.cwd()), runtime_env={})
    except ray.exceptions.AuthenticationError:
        raise SetupError(
            f"the Ray cluster at {where} takes no job without its token; export RAY_AUTH_MODE=token and its token as "
            "RAY_AUTH_TOKEN, or the file that holds it as RAY_AUTH_TOKEN_PATH"
        ) from None
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise SetupError(
            f"no Ray job server answers at {where} ({own_sentence(error)}); start the head with `ray[default]` "
            f"installed and set {SERVER}=http://HEAD:8265, or launch without detach"
        ) from None
    return SubmittedJob(name=str(name), server=client.get_address(), client=client)

"""A private Postgres for tests: the server that GOPHER_TEST_POSTGRES names, or a throw-away cluster of this machine's own."""

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCHEME = "postgresql+psycopg://"


def programs() -> Path | None:
    """The folder that has initdb and pg_ctl, or None. Debian keeps them off PATH."""
    found = shutil.which("pg_ctl")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((f for f in folders if (f / "initdb").exists() and (f / "pg_ctl").exists()), None)


def unprivileged() -> str | None:
    """The user to run the server as: it refuses root. None when we are nobody special ourselves."""
    if os.geteuid() != 0:
        return None
    users = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in users else "nobody"


def why_none() -> str | None:
    """Why no Postgres can be had here, or None."""
    if os.environ.get("GOPHER_TEST_POSTGRES") or programs():
        return None
    return "GOPHER_TEST_POSTGRES names no server and no Postgres is installed"


@contextmanager
def postgres_server() -> Iterator[str]:
    """The address of a server where databases may be made; a server of our own is gone when the block ends."""
    if named := os.environ.get("GOPHER_TEST_POSTGRES"):
        yield named
        return
    bin_dir, user = programs(), unprivileged()
    assert bin_dir is not None
    with tempfile.TemporaryDirectory(
        prefix="gopher-postgres-"
    ) as folder:  # short and open to another user: not tmp_path
        root, password = Path(folder), secrets.token_hex(16)
        (root / "password").write_text(password + "\n")
        if user:
            for path in (root, root / "password"):
                shutil.chown(path, user)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]

        def run(program: str, *words: str) -> None:
            command = [str(bin_dir / program), "-D", str(root / "data"), *words]
            subprocess.run(command, user=user, cwd=root, check=True, stdout=subprocess.DEVNULL, timeout=60)

        words = ["-U", "gopher", "-A", "scram-sha-256", f"--pwfile={root / 'password'}", "--no-sync"]
        run("initdb", *words, "--encoding=UTF8", "--locale=C")
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories='' -c fsync=off"
        run("pg_ctl", "-l", str(root / "log"), "-w", "-o", options, "start")
        try:
            yield f"{SCHEME}gopher:{password}@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-m", "immediate", "stop")

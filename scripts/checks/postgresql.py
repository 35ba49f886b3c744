"""A PostgreSQL server on loopback, in a temporary folder, for as long as it is needed.

The programs are looked for on PATH, and where Debian's package `postgresql` puts them; nothing is
installed and no server that runs already is touched.
"""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path


def programs() -> Path | None:
    """The folder with initdb and pg_ctl, of the newest version there is."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return versions[-1].parent if versions else None


@contextlib.contextmanager
def server(connections: int = 100) -> Iterator[str]:
    """The URL of an empty database of a new server, which ends with the context.

    Args:
        connections: how many it allows at once.
    """
    folder = programs()
    if folder is None:
        raise FileNotFoundError("PostgreSQL is not here; on Debian: apt-get install postgresql")
    with tempfile.TemporaryDirectory(prefix="postgresql-") as scratch, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        # It refuses to run as root.
        account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        if account:
            os.chown(scratch, account.pw_uid, account.pw_gid)
        data = Path(scratch) / "data"

        def run(*command: str | Path) -> None:
            done = subprocess.run(
                command,
                check=False,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                cwd=scratch,
                user=account and account.pw_uid,
                group=account and account.pw_gid,
            )
            if done.returncode:
                raise OSError(f"{command[0]}: {done.stderr.strip()}")

        run(
            folder / "initdb", "-D", data, "-U", "fashion", "-A", "trust", "-E", "UTF8", "--no-sync"
        )
        options = f"-h 127.0.0.1 -p {port} -k {scratch} -N {connections}"
        log = Path(scratch) / "log"
        # What it prints must not hold our pipe open.
        run(folder / "pg_ctl", "-D", data, "-o", options, "-l", log, "-w", "start")
        try:
            yield f"postgresql://fashion@127.0.0.1:{port}/postgres"
        finally:
            run(folder / "pg_ctl", "-D", data, "-m", "immediate", "stop")

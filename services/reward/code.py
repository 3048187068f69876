"""The code scorer: what the task's own Python function `score(prompt, completion, reference)` returns, in a sandbox."""

from __future__ import annotations

import logging
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from typing import Any, Final

import numpy as np

from services.reward.code_probe import prove
from services.reward.code_sandbox import Call, NoScore, Sandbox, SandboxBroken
from services.reward.code_settings import CodeSettings
from services.reward.scorer import Judgement, ScoringFailed, options_as
from tba_common.messages import Rollout
from tba_common.scorer_options import CodeOptions
from tba_common.settings import WRONG_SETTINGS

_SANDBOX_VERSION: Final = 1

log = logging.getLogger(__name__)


class Code:
    """A `Scorer` by foreign code. Each completion is judged in a process that never sees another."""

    def __init__(self, name: str, sandboxes: Sequence[Sandbox], threads: ThreadPoolExecutor) -> None:
        """As many threads as there are sandboxes: each evaluation has one to itself."""
        self.name: Final = name
        self.version: Final = f"{_SANDBOX_VERSION}/python-{platform.python_version()}"
        self._threads = threads
        self._idle: SimpleQueue[Sandbox] = SimpleQueue()
        for sandbox in sandboxes:
            self._idle.put(sandbox)

    def score(self, rollout: Rollout, options: Mapping[str, Any]) -> Judgement:
        """Return what the function returns for each completion.

        Raises:
            BadMessage: no source, or options that mean nothing.
            ScoringFailed: the function raised, returned no finite number, or was ended; never a zero.
        """
        wanted = options_as(CodeOptions, options)
        calls = [
            Call(
                source=wanted.source,
                prompt=rollout.prompt.text,
                completion=completion.text,
                reference=rollout.prompt.reference,
                seconds=wanted.seconds,
                memory_mb=wanted.memory_mb,
            )
            for completion in rollout.completions
        ]
        places = [f"completion {number} of {len(calls)}" for number in range(1, len(calls) + 1)]
        scores = self._threads.map(self._evaluate, calls, places)
        return Judgement(np.array(list(scores), dtype=np.float32))

    def _evaluate(self, call: Call, where: str) -> float:
        sandbox = self._idle.get()
        try:
            return sandbox.evaluate(call)
        except NoScore as failure:
            raise ScoringFailed(f"code {failure} on {where}") from failure
        finally:
            self._idle.put(sandbox)


@contextmanager
def open_code(name: str, settings: CodeSettings) -> Iterator[Code]:
    """A code scorer whose sandboxes were proven from inside.

    Raises:
        SystemExit: a protection is missing on this machine; stderr says which.
    """
    with ExitStack() as stack:
        try:
            sandboxes = [stack.enter_context(Sandbox()) for _ in range(settings.evaluation_processes)]
            for sandbox in sandboxes:
                prove(sandbox)
        except SandboxBroken as fault:
            sys.stderr.write(f"{name}: no sandbox on this machine, so no code is run: {fault}\n")
            raise SystemExit(WRONG_SETTINGS) from fault
        log.info("sandbox proven", extra={"scorer": name})
        threads = ThreadPoolExecutor(len(sandboxes), thread_name_prefix=name)
        stack.callback(threads.shutdown, cancel_futures=True)
        yield Code(name, sandboxes, threads)

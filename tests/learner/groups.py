"""Groups as the buffer sends them, short to write."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Final

from tba_common.messages import Draw, Group
from tba_common.tasks import Target

RUN: Final = "run"
PAD: Final = 0  # token ids of the small policy
EOS: Final = 1
PROMPT: Final = (19, 14, 20, 32)  # 0+6?


def draw(
    trajectory_id: int,
    token_ids: Sequence[int],
    *,
    reward: float = 0.0,
    policy_version: int = 0,
    ref_logprob: float | None = None,
) -> Draw:
    return Draw(
        trajectory_id=trajectory_id,
        token_ids=token_ids,
        logprobs=[-1.0] * len(token_ids),
        reward=reward,
        policy_version=policy_version,
        draw_logprob=0.0,
        ref_logprob=ref_logprob,
    )


def group(*draws: Draw, beta: float = 0.1, **changes: Any) -> Group:
    """The only group of batch 1, unless changed."""
    fields: dict[str, Any] = {
        "run_id": RUN,
        "batch_id": 1,
        "index": 0,
        "size": 1,
        "task_id": 1,
        "task_step": 0,
        "prompt_id": 1,
        "kind": "online",
        "prompt_token_ids": PROMPT,
        "temperature": 1.0,
        "target": Target(beta=beta),
        "draws": draws,
    }
    return Group(**(fields | changes))


def batch(batch_id: int, *, size: int = 2, draws: int = 4, **changes: Any) -> list[Group]:
    """A whole batch of random completions and rewards, the same for the same number."""
    rng = random.Random(batch_id)

    def completion() -> list[int]:
        return [*rng.choices(range(3, 90), k=rng.randint(1, 4)), EOS]

    return [
        group(
            *(draw(100 * index + i, completion(), reward=float(rng.random() < 0.5)) for i in range(draws)),
            **{"batch_id": batch_id, "index": index, "size": size, "task_step": batch_id - 1} | changes,
        )
        for index in range(size)
    ]

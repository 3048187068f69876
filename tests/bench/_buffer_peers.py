"""Peers of the buffer, each in its own environment and process: `python _buffer_peers.py NAME --rows N`.

Knows nothing of this platform, so that it runs where only the peer is installed. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

GROUPS, COUNT, PER_PROMPT, CHUNK = 16, 20, 100, 500
STORED_TOKENS = 32  # in a filled buffer; what is drawn by prompt does not look at them
TOKENS = 384  # of a row whose insertion is timed: 512 at most, as many on average as ours


def cpu() -> float:
    """Seconds of this process, all its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def cost(work: Callable[[], object], repeats: int) -> float:
    """CPU seconds of one call, the median of some."""
    costs = []
    for _ in range(repeats):
        began = cpu()
        work()
        costs.append(cpu() - began)
    return float(np.median(costs))


def torchrl(rows: int) -> dict[str, float]:
    """TorchRL's sampler of whole prompt groups: a draw after 500 new rows, and the insertion of 500."""
    import torch
    from tensordict import TensorDict
    from torchrl.data import LazyTensorStorage, ReplayBuffer
    from torchrl.data.replay_buffers.samplers import PromptGroupSampler

    torch.set_num_threads(1)

    def chunk(first: int, count: int, tokens: int = STORED_TOKENS) -> Any:
        fields = {
            "tokens": torch.zeros(count, tokens, dtype=torch.int32),
            "prompt_id": (torch.arange(first, first + count) // PER_PROMPT) % (rows // PER_PROMPT),
            "reward": torch.rand(count),
        }
        return TensorDict(fields, batch_size=[count])

    sampler = PromptGroupSampler(num_groups=GROUPS, group_key="prompt_id", strategy="reward", reward_key="reward")
    buffer = ReplayBuffer(storage=LazyTensorStorage(rows), sampler=sampler, batch_size=GROUPS * COUNT)
    for first in range(0, rows, 50_000):
        buffer.extend(chunk(first, min(50_000, rows - first)))
    new = chunk(0, CHUNK)

    def insert_and_draw() -> None:
        buffer.extend(new)
        buffer.sample()

    insert_and_draw()
    plain = ReplayBuffer(storage=LazyTensorStorage(min(rows, 50_000)))
    long = chunk(0, CHUNK, TOKENS)
    return {
        "insert_cpu_us": cost(lambda: plain.extend(long), 50) / CHUNK * 1e6,
        "insert_and_draw_cpu_ms": cost(insert_and_draw, 5) * 1e3,
    }


def cpprb(rows: int) -> dict[str, float]:
    """cpprb's prioritised buffer: raw insertion and a draw of 320, in memory, ungrouped."""
    from cpprb import PrioritizedReplayBuffer

    fields = {"tokens": {"shape": TOKENS, "dtype": np.int32}, "reward": {}}
    buffer = PrioritizedReplayBuffer(min(rows, 100_000), fields)
    new = {"tokens": np.zeros((CHUNK, TOKENS), np.int32), "reward": np.random.rand(CHUNK)}

    def insert() -> None:
        buffer.add(priorities=np.random.rand(CHUNK), **new)

    return {
        "insert_cpu_us": cost(insert, 200) / CHUNK * 1e6,
        "draw_cpu_ms": cost(lambda: buffer.sample(GROUPS * COUNT), 50) * 1e3,
    }


def reverb(rows: int) -> dict[str, float]:
    """Reverb over gRPC: a server of its own, a client that inserts rows one by one and flushes each 500."""
    import reverb as library

    server = subprocess.Popen([sys.executable, __file__, "reverb-server"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        client = library.Client(f"localhost:{int(server.stdout.readline())}")
        row = {"tokens": np.arange(TOKENS, dtype=np.int32), "logprobs": np.zeros(TOKENS, np.float32)}
        count = min(rows, 10_000)
        began = cpu() + _cpu_of(server.pid)
        began_at = time.perf_counter()
        with client.trajectory_writer(num_keep_alive_refs=CHUNK) as writer:
            for number in range(count):
                row["tokens"][0] = number
                writer.append(row)
                item = {name: writer.history[name][-1:] for name in row}
                writer.create_item("rows", priority=1.0, trajectory=item)
                if number % CHUNK == CHUNK - 1:
                    writer.flush()
        seconds = time.perf_counter() - began_at
        used = cpu() + _cpu_of(server.pid) - began
    finally:
        server.kill()
        server.wait()
    return {"insert_cpu_us": used / count * 1e6, "insert_rows_per_second": count / seconds}


def reverb_server() -> None:
    """Serve until killed; say the port."""
    import reverb as library

    limiter = library.rate_limiters.MinSize(1)
    select = library.selectors
    table = library.Table("rows", select.Prioritized(0.8), select.Fifo(), max_size=1_000_000, rate_limiter=limiter)
    server = library.Server([table])
    print(server.port, flush=True)
    server.wait()


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure one peer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=["torchrl", "cpprb", "reverb", "reverb-server"])
    parser.add_argument("--rows", type=int, default=10_000)
    asked = parser.parse_args()
    if asked.peer == "reverb-server":
        reverb_server()
    else:
        print(json.dumps({"torchrl": torchrl, "cpprb": cpprb, "reverb": reverb}[asked.peer](asked.rows)))


if __name__ == "__main__":
    main()

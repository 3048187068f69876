"""Several processes as one learner: each computes a share of a batch, gradients are summed, all take the same step.

torchrun starts them. Rank 0 leads: it alone reads batches, publishes, saves and reports, and sends the others what to
train. Every rank holds the whole model (data parallel). Nothing that travels between ranks is pickled.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from tba_common.codec import decode, encode
from tba_common.messages import Group

T = TypeVar("T")

#: A rank waits this long for the others, which may read a checkpoint or publish meanwhile; then one of them hangs.
_PATIENCE = timedelta(hours=1)
#: A follower takes within this what the leader sends, or counts as gone: torchrun sees only what dies on its own node.
_SILENCE = timedelta(seconds=60)
_STOP, _CALL = 0, -1  # in place of a step


@dataclass(frozen=True)
class Ranks:
    """Which rank this process is, of how many; alone unless torchrun says otherwise."""

    rank: int = 0
    count: int = 1
    orders: dist.ProcessGroup | None = None  # for what the leader sends; there it has less patience than followers

    @classmethod
    def join(cls) -> Ranks:
        """Meet the other ranks, if torchrun has started this process.

        A follower goes on through SIGTERM: the leader finishes its step and then sends it home.
        """
        if not dist.is_torchelastic_launched():
            return cls()
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
        rank = dist.get_rank()
        orders = dist.new_group(backend="gloo", timeout=_PATIENCE if rank else _SILENCE)
        ranks = cls(rank, dist.get_world_size(), orders)
        if not ranks.leads:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return ranks

    @property
    def leads(self) -> bool:
        """Whether this is the rank that the rest of the platform talks to."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device of this rank: its own GPU where `auto` finds several."""
        return f"cuda:{dist.get_node_local_rank()}" if name == "auto" and self._has_gpu else name

    @property
    def _has_gpu(self) -> bool:
        return self.count > 1 and torch.cuda.is_available()

    def share(self, work: Sequence[T]) -> Sequence[T]:
        """This rank's part of work that is ordered by size: every `count`-th piece."""
        return work[self.rank :: self.count]

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Put the sum over all ranks in place of each tensor."""
        if self.count > 1:
            for pending in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
                pending.wait()

    def copy_from_leader(self, tensors: Iterable[Tensor]) -> None:
        """Put the leader's values in place of each tensor."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def send(self, step: int, groups: Sequence[Group]) -> None:
        """Tell the followers to train these groups as optimiser step `step`."""
        if self.count > 1:
            self._exchange_numbers([step, len(groups)])
            for group in groups:
                self._send_bytes(encode(group)[1])

    def call_roll(self) -> None:
        """While there is nothing to train: see that every follower is there.

        Raises:
            RuntimeError: one does not answer.
        """
        if self.count > 1:
            self._exchange_numbers([_CALL, 0])

    def send_home(self) -> None:
        """Tell the followers that it is over, and leave."""
        if self.count > 1:
            self._exchange_numbers([_STOP, 0])
            dist.destroy_process_group()

    def receive(self) -> tuple[int, list[Group]] | None:
        """Wait for what the leader sends: a step and its groups, or None when it is over."""
        step = _CALL
        while step == _CALL:
            step, groups = self._exchange_numbers([0, 0])
        if step == _STOP:
            dist.destroy_process_group()
            return None
        return step, [_group(self._receive_bytes()) for _ in range(groups)]

    def agree(self, number: int) -> int:
        """The leader's number, on every rank."""
        tensor = torch.tensor(number)
        self.copy_from_leader([tensor])
        return int(tensor)

    def _exchange_numbers(self, numbers: list[int]) -> list[int]:
        tensor = torch.tensor(numbers, dtype=torch.int64)
        dist.broadcast(tensor, src=0, group=self.orders)
        return [int(number) for number in tensor]

    def _send_bytes(self, body: bytes) -> None:
        self._exchange_numbers([len(body)])
        dist.broadcast(torch.from_numpy(np.frombuffer(body, dtype=np.uint8).copy()), src=0, group=self.orders)

    def _receive_bytes(self) -> bytes:
        tensor = torch.empty(self._exchange_numbers([0])[0], dtype=torch.uint8)
        dist.broadcast(tensor, src=0, group=self.orders)
        return tensor.numpy().tobytes()


ALONE = Ranks()


def _group(body: bytes) -> Group:
    message = decode(f"group/{Group.schema_version}", body)
    if not isinstance(message, Group):
        raise TypeError(f"expected a group from the leader, got {type(message).__name__}")
    return message

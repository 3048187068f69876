"""Groups as padded tensors: right-padded rows, a mask of what the policy wrote, and which draw belongs where.

Token ids are taken as they come, nothing is tokenized again. A row is one distinct trajectory and is computed
once; a trajectory drawn three times is three draws of one row. How rows are cut into micro-batches decides
memory and speed, never the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.learner.schedule import Strengths, strengths_at
from tba_common.messages import Draw, Group


@dataclass(frozen=True)
class Rows:
    """Sequences for one forward pass of a model, padded on the right."""

    input_ids: Tensor  # [rows, length] int64
    attention_mask: Tensor  # [rows, length] int64: 1 up to the last token, by length and never by pad id
    completion_mask: Tensor  # [rows, length] bool: the tokens the policy wrote, EOS among them
    temperature: Tensor  # [rows] float32, of the policy that is trained


@dataclass(frozen=True)
class MicroBatch:
    """Rows, and the draws they stand for."""

    rows: Rows
    row: Tensor  # [draws] int64: the row of each draw
    group: Tensor  # [draws] int64: 0 .. groups-1 within the micro-batch; draws of one group share log Z
    reward: Tensor  # [draws] float32
    beta: Tensor  # [draws] float32
    reference_weight: Tensor  # [draws] float32
    ref_logprob: Tensor  # [draws] float32, as a scorer computed it; NaN where none did


@dataclass(frozen=True)
class _Sequence:
    """A distinct trajectory on its way to a row."""

    prompt: Sequence[int]
    draw: Draw
    temperature: float
    strengths: Strengths
    group: int  # among those of the unit
    count: int  # times drawn

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.draw.token_ids)


def split_batch(
    groups: Sequence[Group], *, pad_token_id: int, token_budget: int, device: torch.device | str = "cpu"
) -> list[tuple[MicroBatch, ...]]:
    """Cut a batch into units of work, each a tuple of micro-batches of at most `token_budget` padded tokens.

    A group is what shares log Z: the draws of a prompt, or the whole part that a task has in the batch where its
    target says so. A unit holds whole groups. It is one micro-batch, of groups of like length, unless a single group
    exceeds the budget: then it is that group in several, and log Z must be estimated over all of them first. One row
    alone may exceed the budget, since a trajectory cannot be cut.
    """
    by_group = sorted(_sharing_log_z(groups), key=_longest)
    units = []
    for packed in _pack(by_group, token_budget):
        sequences = [sequence for group in packed for sequence in group]
        parts = [sequences] if len(packed) > 1 else _cut(sequences, token_budget)
        units.append(tuple(_micro_batch(part, pad_token_id, torch.device(device)) for part in parts))
    return units


def pad_rows(
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    temperature: Sequence[float],
    pad_token_id: int,
    device: torch.device | str = "cpu",
) -> Rows:
    """Lay (prompt ids, completion ids) pairs out as rows; the padding is masked by position, whatever its id."""
    length = max(len(prompt) + len(completion) for prompt, completion in sequences)
    input_ids = torch.full((len(sequences), length), pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    completion_mask = torch.zeros_like(input_ids, dtype=torch.bool)
    for i, (prompt, completion) in enumerate(sequences):
        end = len(prompt) + len(completion)
        input_ids[i, :end] = torch.tensor([*prompt, *completion], dtype=torch.int64)
        attention_mask[i, :end] = 1
        completion_mask[i, len(prompt) : end] = True
    return Rows(
        input_ids=input_ids.to(device),
        attention_mask=attention_mask.to(device),
        completion_mask=completion_mask.to(device),
        temperature=torch.tensor(temperature, dtype=torch.float32, device=device),
    )


def _sharing_log_z(groups: Sequence[Group]) -> Iterator[list[_Sequence]]:
    """The distinct trajectories of each group, shortest first; the groups of a task as one where it says so."""
    of_task: dict[int, list[Group]] = {}
    for group in groups:
        if group.target.baseline == "batch":
            of_task.setdefault(group.task_id, []).append(group)
    together = [*([group] for group in groups if group.target.baseline == "prompt"), *of_task.values()]
    for number, members in enumerate(together):
        sequences = [sequence for group in members for sequence in _sequences(group, number)]
        yield sorted(sequences, key=lambda sequence: sequence.length)


def _sequences(group: Group, number: int) -> list[_Sequence]:
    first: dict[int, Draw] = {}
    counts: dict[int, int] = {}
    for draw in group.draws:
        first.setdefault(draw.trajectory_id, draw)
        counts[draw.trajectory_id] = counts.get(draw.trajectory_id, 0) + 1
    prompt = group.prompt_token_ids.tolist()
    strengths = strengths_at(group.target, group.task_step)
    return [
        _Sequence(prompt, draw, group.temperature, strengths, number, counts[trajectory_id])
        for trajectory_id, draw in first.items()
    ]


def _longest(sequences: Sequence[_Sequence]) -> int:
    return max(sequence.length for sequence in sequences)


def _pack(groups: Sequence[list[_Sequence]], token_budget: int) -> list[list[list[_Sequence]]]:
    """Whole groups, in order, into bins of at most `token_budget` padded tokens; a larger group has its own."""
    bins: list[list[list[_Sequence]]] = []
    rows = 0
    for group in groups:
        rows += len(group)
        if bins and rows * _longest(group) <= token_budget:
            bins[-1].append(group)
        else:
            bins.append([group])
            rows = len(group)
    return bins


def _cut(sequences: Sequence[_Sequence], token_budget: int) -> list[list[_Sequence]]:
    """Rows of one group, shortest first, into parts of at most `token_budget` padded tokens."""
    parts: list[list[_Sequence]] = []
    for sequence in sequences:
        if parts and (len(parts[-1]) + 1) * sequence.length <= token_budget:
            parts[-1].append(sequence)
        else:
            parts.append([sequence])
    return parts


def _micro_batch(sequences: Sequence[_Sequence], pad_token_id: int, device: torch.device) -> MicroBatch:
    rows = pad_rows(
        [(sequence.prompt, sequence.draw.token_ids.tolist()) for sequence in sequences],
        temperature=[sequence.temperature for sequence in sequences],
        pad_token_id=pad_token_id,
        device=device,
    )
    local = {index: i for i, index in enumerate(dict.fromkeys(sequence.group for sequence in sequences))}
    row = [i for i, sequence in enumerate(sequences) for _ in range(sequence.count)]
    drawn = [sequences[i] for i in row]

    def of_each(value: Callable[[_Sequence], float]) -> Tensor:
        return torch.tensor([value(sequence) for sequence in drawn], dtype=torch.float32, device=device)

    return MicroBatch(
        rows=rows,
        row=torch.tensor(row, dtype=torch.int64, device=device),
        group=torch.tensor([local[sequence.group] for sequence in drawn], dtype=torch.int64, device=device),
        reward=of_each(lambda sequence: sequence.draw.reward),
        beta=of_each(lambda sequence: sequence.strengths.beta),
        reference_weight=of_each(lambda sequence: sequence.strengths.reference_weight),
        ref_logprob=of_each(
            lambda sequence: math.nan if sequence.draw.ref_logprob is None else sequence.draw.ref_logprob
        ),
    )

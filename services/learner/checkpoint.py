"""What a learner needs to go on as if nothing had happened: trained weights, optimiser, and where it was on the line.

A directory `step-00000040/` of safetensors and JSON, written aside, synced, renamed. The offset of the next batch
lies beside the weights it belongs to, so a resumed run trains the same batches and, on CPU, is bit-equal.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from services.learner.update import Updater
from tba_common.disk import new_directory, sha256
from tba_common.messages import Step

STATE: Final = "state.json"
TENSORS: Final = "tensors.safetensors"
_KEEP: Final = 2
_MOMENTS: Final = ("step", "exp_avg", "exp_avg_sq")
_RANDOM: Final = "random_state"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Where the learner is: steps taken, the newest batch trained, where to read on, and what it said last."""

    step: int = 0
    batch_id: int = 0
    next_offset: int = 0
    reports: tuple[Step, ...] = ()  # of the newest steps: as many as the buffer may not have heard


class CheckpointError(Exception):
    """There are checkpoints and none can be used; says why each cannot, or what does not fit."""


class CheckpointStore:
    """The checkpoints of one run, of which the newest two are kept."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def save(self, progress: Progress, updater: Updater) -> None:
        """Write a checkpoint, and drop all but it and the one before.

        What bears a later step was damaged, or `load` would have returned it; a name that ends in .tmp was never
        finished.
        """
        final = self._directory / f"step-{progress.step:08d}"
        shutil.rmtree(final, ignore_errors=True)  # damaged, or the same step again: the one before it still stands
        with new_directory(final) as aside:
            save_file(_tensors(updater), aside / TENSORS)
            state = {**_written(progress), "base": _base(updater), "sha256": sha256(aside / TENSORS)}
            (aside / STATE).write_text(json.dumps(state, indent=1))
        kept = [directory for directory in self._all() if directory <= final][-_KEEP:]
        for directory in self._directory.glob("step-*"):
            if directory not in kept:
                shutil.rmtree(directory)

    def load(self, updater: Updater) -> Progress | None:
        """Put the newest whole checkpoint into the policy and its optimiser; None if there never was one.

        Raises:
            CheckpointError: every checkpoint is damaged, or the newest whole one is of another model. Starting over
                would be worse than stopping.
        """
        faults = []
        for directory in reversed(self._all()):
            try:
                progress, base, tensors = _read(directory)
            except (OSError, ValueError, KeyError) as error:
                faults.append(f"{directory.name}: {error}")
                log.error("checkpoint is damaged", extra={"checkpoint": directory.name, "reason": str(error)})
                continue
            if base != _base(updater):
                raise CheckpointError(f"the checkpoint's adapter lies on base {base}, expected {_base(updater)}")
            _restore(updater, tensors)
            return progress
        if faults:
            raise CheckpointError(f"no usable checkpoint in {self._directory}: {'; '.join(faults)}")
        return None

    def _all(self) -> list[Path]:
        return sorted(path for path in self._directory.glob("step-*") if path.suffix != ".tmp")


def align(updater: Updater) -> None:
    """Bring every rank to where the leader is, which alone has read the checkpoint."""
    ranks = updater.ranks
    if ranks.agree(int(bool(updater.optimizer.state))) and not ranks.leads:
        for parameter in updater.policy.trained.values():
            moments = {moment: torch.zeros_like(parameter) for moment in _MOMENTS[1:]}
            updater.optimizer.state[parameter] = {"step": torch.zeros(()), **moments}
    tensors = _tensors(updater)
    ranks.copy_from_leader(tensors.values())
    if not ranks.leads:
        _restore(updater, tensors)


def _written(progress: Progress) -> dict[str, Any]:
    reports = [report.model_dump(mode="json") for report in progress.reports]
    return {
        "step": progress.step,
        "batch_id": progress.batch_id,
        "next_offset": progress.next_offset,
        "reports": reports,
    }


def _base(updater: Updater) -> str | None:
    """The digest of what an adapter lies on, which is not in the checkpoint; None where every weight is."""
    adapter = updater.policy.adapter
    return None if adapter is None else adapter.base.digest


def _tensors(updater: Updater) -> dict[str, Tensor]:
    tensors = {_RANDOM: torch.get_rng_state()}
    for name, parameter in updater.policy.trained.items():
        tensors[f"model.{name}"] = parameter.detach().contiguous()
        for moment, value in updater.optimizer.state.get(parameter, {}).items():
            tensors[f"{moment}.{name}"] = value.contiguous()
    if updater.reset_reference_every:  # else it is the model that training began with
        tensors |= {f"reference.{name}": weight for name, weight in _reference(updater).items()}
    return tensors


def _reference(updater: Updater) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {name: w.detach() for name, w in updater.policy.reference.named_parameters()}
    return weights


def _restore(updater: Updater, tensors: dict[str, Tensor]) -> None:
    parameters = updater.policy.trained
    _check_fit(parameters, tensors)
    torch.set_rng_state(tensors[_RANDOM])
    if updater.reset_reference_every:
        _restore_reference(updater, tensors)
    state: dict[int, dict[str, Tensor]] = {}
    for index, (name, parameter) in enumerate(parameters.items()):
        with torch.no_grad():
            parameter.copy_(tensors[f"model.{name}"])
        if f"step.{name}" in tensors:
            state[index] = {moment: tensors[f"{moment}.{name}"] for moment in _MOMENTS}
    groups = updater.optimizer.state_dict()["param_groups"]
    updater.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _restore_reference(updater: Updater, tensors: dict[str, Tensor]) -> None:
    weights = _reference(updater)
    if missing := sorted(name for name in weights if f"reference.{name}" not in tensors):
        raise CheckpointError(f"the checkpoint has no reference, which is reset on the way: {missing[:3]} are missing")
    for name, weight in weights.items():
        weight.copy_(tensors[f"reference.{name}"])


def _check_fit(parameters: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    ours = {(f"model.{name}", parameter.shape) for name, parameter in parameters.items()}
    saved = {(name, tensor.shape) for name, tensor in tensors.items() if name.startswith("model.")}
    if different := sorted({name for name, _ in ours ^ saved}):
        raise CheckpointError(f"the checkpoint is of another model: {len(different)} tensors differ, {different[:3]}")


def _read(directory: Path) -> tuple[Progress, str | None, dict[str, Tensor]]:
    state: dict[str, Any] = json.loads((directory / STATE).read_text())
    digest = sha256(directory / TENSORS)
    if digest != state["sha256"]:
        raise ValueError(f"{TENSORS} expected sha256 {state['sha256']}, got {digest}")
    reports = tuple(Step.model_validate(report) for report in state.get("reports", ()))
    progress = Progress(state["step"], state["batch_id"], state["next_offset"], reports)
    return progress, state.get("base"), load_file(directory / TENSORS)

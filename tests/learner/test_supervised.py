"""The supervised start: it learns, it can stop in time, and what it measures with it never trains on."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import one_hot

from services.learner.collate import pad_rows
from services.learner.supervised import HELD_OUT, Outcome, greedy_accuracy, train
from tests.learner.groups import EOS, PAD

pytestmark = pytest.mark.integration


def lines(count: int, *, answer: str = "7") -> list[str]:
    return [json.dumps({"text": f"{i % 10}=", "reference": answer}) for i in range(count)]


def write(path: Path, content: list[str]) -> Path:
    path.write_text("\n".join(content))
    return path


def run(model: Path, data: Path, out: Path, **changes: Any) -> Outcome:
    options: dict[str, Any] = {"steps": 4, "batch": 8, "report": lambda line: None} | changes
    return train(model=model, data=data, out=out, **options)


def weights(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(folder / "model.safetensors")
    return tensors


def equal(first: Path, second: Path) -> bool:
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_it_learns_the_answer_and_the_end_and_stops_there(model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", lines(HELD_OUT + 20))
    said: list[str] = []
    outcome = run(model, data, tmp_path / "out", steps=200, until_accuracy=1.0, learning_rate=3e-2, report=said.append)
    assert outcome.accuracy == 1.0
    assert outcome.steps < 200
    assert outcome.loss < math.log(99)  # that of a uniform guess
    assert f"supervised step {outcome.steps}/200" in said[-1]


def test_it_ends_after_its_steps_when_the_accuracy_is_not_reached(model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", lines(HELD_OUT + 20))
    outcome = run(model, data, tmp_path / "out", steps=3, learning_rate=1e-6)
    assert (outcome.steps, outcome.accuracy) == (3, 0.0)
    assert not equal(model, tmp_path / "out")


def test_the_same_seed_gives_the_same_weights_and_another_other_ones(model: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", lines(HELD_OUT + 20))
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(model, data, tmp_path / name, seed=seed)
    assert equal(tmp_path / "a", tmp_path / "b")
    assert not equal(tmp_path / "a", tmp_path / "c")


def test_the_held_out_pairs_are_never_trained_on(model: Path, tmp_path: Path) -> None:
    for name, held_out in (("a", "7"), ("b", "3")):
        data = write(tmp_path / f"{name}.jsonl", lines(20) + lines(HELD_OUT, answer=held_out))
        run(model, data, tmp_path / name, batch=30)
    assert equal(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([json.dumps({"text": "1="})], r"data.jsonl:1: expected an object with strings 'text' and 'reference'"),
        ([*lines(2), json.dumps({"text": "1=", "reference": 7})], r"data.jsonl:3: expected an object"),
        (lines(HELD_OUT), rf"expected more than {HELD_OUT} pairs, which are held out, got {HELD_OUT}"),
    ],
)
def test_data_that_cannot_be_used_is_refused_with_its_place(
    model: Path, tmp_path: Path, content: list[str], message: str
) -> None:
    data = write(tmp_path / "data.jsonl", content)
    with pytest.raises(ValueError, match=message):
        run(model, data, tmp_path / "out")


@pytest.mark.parametrize("changes", [{"steps": 0}, {"batch": 0}])
def test_no_step_or_no_pair_is_refused(model: Path, tmp_path: Path, changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected one step and one pair a step, or more"):
        run(model, tmp_path / "missing.jsonl", tmp_path / "out", **changes)


class Parrot:
    """Predicts each token of `ids`, shifted by one: after the first, everything is right."""

    def __init__(self, ids: Tensor) -> None:
        self.logits = one_hot(torch.cat([ids[:, 1:], ids[:, :1]], dim=1), 99).float()

    def __call__(self, **_inputs: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits)


def test_accuracy_is_the_share_of_answers_right_to_the_end() -> None:
    pairs = [([20], [40, EOS]), ([21, 22], [41, EOS]), ([23], [42, 43, EOS])]
    rows = pad_rows(pairs, temperature=[1.0] * 3, pad_token_id=PAD)
    parrot = Parrot(rows.input_ids)
    assert greedy_accuracy(parrot, rows) == 1.0
    parrot.logits[0, 1] = 0  # the EOS of the first
    assert greedy_accuracy(parrot, rows) == pytest.approx(2 / 3)
    parrot.logits[1, 0] = 0  # a token of a prompt: nobody wrote it
    parrot.logits[0, 2] = 0  # padding
    assert greedy_accuracy(parrot, rows) == pytest.approx(2 / 3)


def test_a_tokenizer_without_a_pad_token_will_do(model: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(model, tmp_path / "bare")
    config = json.loads((bare / "tokenizer_config.json").read_text())
    (bare / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": None}))
    data = write(tmp_path / "data.jsonl", lines(HELD_OUT + 20))
    run(model, data, tmp_path / "out")
    run(bare, data, tmp_path / "out of bare")
    assert equal(tmp_path / "out", tmp_path / "out of bare")

"""Adapters along the line: trained by the learner process, hot-loaded by a generator process, version by version."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tba_common.kafka import Producer, Reader
from tba_common.messages import Rollout
from tba_common.topics import PROMPTS, rollouts
from tba_common.weights import WeightStore
from tests.integration.test_generator import generator, prompt, read_until
from tests.integration.test_learner import batches, ear, learner, send
from tests.learner.small_policy import write_small

pytestmark = pytest.mark.integration

STEPS: Final = 6  # a version every third


@torch.no_grad()
def logprobs_in_plain_peft(base: Path, adapter: Path, rollout: Rollout) -> Any:
    """What the adapter's folder says about a completion, loaded as anybody would."""
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained
    model = PeftModel.from_pretrained(from_pretrained(base), adapter).eval()
    given, written = rollout.prompt_token_ids.tolist(), rollout.completions[0].token_ids.tolist()
    logprobs = model(torch.tensor([given + written])).logits[0, len(given) - 1 : -1].log_softmax(-1)
    return logprobs.gather(-1, torch.tensor(written)[:, None]).squeeze(-1).numpy()


def test_every_version_a_learner_trains_as_an_adapter_is_what_a_generator_samples_from(
    broker: str, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TBA_LORA_RANK", "2")
    base, weights = write_small(tmp_path / "model"), tmp_path / "weights"
    send(broker, run_id, batches(*range(1, STEPS + 1)))
    with (
        contextlib.closing(Producer(broker, run_id)) as producer,
        contextlib.closing(Reader(broker, run_id, [rollouts("verifier")], {})) as reader,
        generator(broker, run_id, weights) as sampling,
    ):
        with ear(broker, run_id) as said, learner(broker, run_id, tmp_path) as training:
            said.listen_until_step(STEPS)
            training.send_signal(signal.SIGTERM)
            assert training.wait(timeout=120) == 0
        for version in (2, 0, 1):
            producer.send(PROMPTS.name, prompt(run_id, version, version=version))
        producer.flush()
        found = read_until(reader, lambda found: len(found) >= 3)
        sampling.send_signal(signal.SIGTERM)
        assert sampling.wait(timeout=120) == 0
    assert WeightStore(weights).versions() == [0, 1, 2]
    assert {r.completions[0].policy_version: r.prompt.issue_id for r in found} == {0: 0, 1: 1, 2: 2}
    for rollout in found:
        expected = logprobs_in_plain_peft(base, weights / f"v{rollout.prompt.issue_id:06d}", rollout)
        np.testing.assert_allclose(rollout.completions[0].logprobs, expected, atol=2e-4)
    assert len({round(float(rollout.completions[0].logprobs[0]), 4) for rollout in found}) == 3

"""The wire format. `golden/` holds one body of every message type as it was released.

Changing a message's bytes fails here first. Adding a field keeps the old file readable; a new schema version gets
a new file beside the old one, which proves that the previous version is still read.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Final

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from tba_common import codec
from tba_common.codec import BadMessage, decode, encode
from tba_common.messages import (
    MESSAGES,
    Completion,
    DeadLetter,
    Draw,
    Group,
    Message,
    Prompt,
    Resumed,
    Rollout,
    Score,
    Step,
    Trajectories,
    Weights,
)
from tba_common.tasks import Exploration, Sampling, ScorerTerm, Target

GOLDEN: Final = Path(__file__).parent / "golden"

PROMPT: Final = Prompt(
    run_id="main",
    issue_id=7,
    attempt=2,
    task_id=1,
    prompt_id=3,
    purpose="eval",
    policy_version=4,
    text="12+07=",
    reference="19",
    metadata={"level": 1},
    prompt_format="chat",
    sampling=Sampling(completions=2, max_new_tokens=8, exploration=Exploration()),
    reward=(ScorerTerm(scorer="verifier", weight=0.5, options={"match": "exact"}),),
)
ROLLOUT: Final = Rollout(
    run_id="main",
    prompt=PROMPT,
    prompt_token_ids=[1, 2, 70_000],
    completions=(
        Completion(token_ids=[5, 2], logprobs=[-0.5, -0.25], text="19", finish_reason="eos", policy_version=4),
        Completion(token_ids=[5], logprobs=[-1.5], text="1", finish_reason="length", policy_version=3),
    ),
    temperature=0.9,
    top_p=1.0,
    generator="generator-0",
    scores=(Score(scorer="verifier", version="1", values=[1.0, 0.0], seconds=0.01),),
    remaining=("verifier",),
)
SAMPLES: Final[tuple[Message, ...]] = (
    PROMPT,
    ROLLOUT,
    Trajectories(run_id="main", rollout=ROLLOUT, rewards=[0.5, 0.0]),
    Group(
        run_id="main",
        batch_id=11,
        index=0,
        size=2,
        task_id=1,
        task_step=10,
        prompt_id=3,
        kind="online",
        prompt_token_ids=[1, 2, 70_000],
        temperature=1.0,
        target=Target(beta=0.05, beta_start=0.5, anneal_steps=100),
        draws=(
            Draw(
                trajectory_id=99,
                token_ids=[5, 2],
                logprobs=[-0.5, -0.25],
                reward=0.5,
                policy_version=4,
                draw_logprob=-2.0,
            ),
        ),
    ),
    Step(
        run_id="main",
        step=11,
        batch_id=11,
        policy_version=5,
        checkpoint_batch_id=10,
        loss=1.25,
        reward=0.5,
        log_z=-3.0,
        log_ratio=0.125,
        grad_norm=0.75,
        beta=0.05,
        learning_rate=1e-4,
        trajectories=32,
        tokens=96,
        staleness_versions={0: 20, 1: 12},
        step_seconds=0.5,
        wait_seconds=0.25,
    ),
    Resumed(run_id="main", batch_id=10, step=10),
    Weights(run_id="main", version=5, step=10, uri="file:///weights/v000005", digest="ab" * 32, steps_per_version=2),
    DeadLetter(
        run_id="main",
        service="tba-generator",
        reason="too long",
        topic="tba.prompts",
        partition=3,
        offset=42,
        schema_header="prompt/1",
        issue_id=7,
        body=b"\x00\xff",
    ),
)


def golden_file(schema: str) -> Path:
    return GOLDEN / f"{schema.replace('/', '-')}.msgpack"


def test_every_message_type_has_a_sample() -> None:
    assert tuple(type(sample) for sample in SAMPLES) == MESSAGES


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample).__name__)
def test_the_bytes_of_a_message_are_those_released(sample: Message) -> None:
    schema, body = encode(sample)
    assert body == golden_file(schema).read_bytes()


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample).__name__)
def test_a_message_survives_the_wire(sample: Message) -> None:
    assert decode(*encode(sample)) == sample


@pytest.mark.parametrize("file", sorted(GOLDEN.glob("*.msgpack")), ids=lambda file: file.stem)
def test_bytes_of_every_released_version_are_still_read(file: Path) -> None:
    name, _, version = file.stem.rpartition("-")
    message = decode(f"{name}/{version}", file.read_bytes())
    assert message == next(sample for sample in SAMPLES if type(sample) is type(message))


def test_arrays_travel_packed_and_come_back_with_their_types() -> None:
    rollout = decode(*encode(ROLLOUT))
    assert isinstance(rollout, Rollout)
    assert rollout.prompt_token_ids.dtype == np.int32
    assert rollout.completions[0].logprobs.dtype == np.float32
    many = Score(scorer="verifier", version="1", values=np.zeros(1_000), seconds=0.0)
    grown = ROLLOUT.model_copy(update={"scores": (many,)})
    assert len(encode(grown)[1]) - len(encode(ROLLOUT)[1]) < 4 * 1_000 + 20


def test_what_a_scorer_found_beside_its_values_travels_with_them() -> None:
    score = Score(scorer="toxicity", version="1", values=[-0.5, -1.5], seconds=0.1, details={"success": [1.0, 0.0]})
    rollout = ROLLOUT.model_copy(update={"scores": (score,), "responses": (("no", "yes"), ("", "maybe"))})
    received = decode(*encode(rollout))
    assert received == rollout
    assert isinstance(received, Rollout)
    assert received.scores[0].details["success"].dtype == np.float32


class Note(Message):
    """A message whose second version added a field."""

    schema_version = 2
    text: str
    mood: str = Field(default="calm")


@pytest.fixture
def note(monkeypatch: pytest.MonkeyPatch) -> type[Note]:
    monkeypatch.setitem(codec._TYPES, "note", Note)
    return Note


def packed(fields: dict[str, Any]) -> bytes:
    body: bytes = msgpack.packb(fields)
    return body


def test_the_previous_version_is_read_with_defaults_for_what_it_lacks(note: type[Note]) -> None:
    assert decode("note/1", packed({"run_id": "main", "text": "hello"})) == note(run_id="main", text="hello")


def test_fields_of_a_newer_writer_are_ignored(note: type[Note]) -> None:
    body = packed({"run_id": "main", "text": "hello", "added_tomorrow": 1})
    assert decode("note/2", body) == note(run_id="main", text="hello")


def with_fields_of_tomorrow(value: Any, name: str = "") -> Any:
    """The same body as a writer of tomorrow has it: one more field in every part, save where any key is data."""
    if isinstance(value, list):
        return [with_fields_of_tomorrow(item) for item in value]
    if isinstance(value, dict) and name not in {"metadata", "options", "staleness_versions", "details"}:
        return {"added_tomorrow": 1} | {key: with_fields_of_tomorrow(item, key) for key, item in value.items()}
    return value


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample).__name__)
def test_fields_of_a_newer_writer_are_ignored_at_any_depth(sample: Message) -> None:
    schema, body = encode(sample)
    grown = with_fields_of_tomorrow(msgpack.unpackb(body, strict_map_key=False))
    assert grown["added_tomorrow"] == 1
    assert decode(schema, msgpack.packb(grown)) == sample


@pytest.mark.parametrize("version", ["0", "3", "", "two"])
def test_any_other_version_is_refused_with_those_accepted(note: type[Note], version: str) -> None:
    with pytest.raises(BadMessage, match="this reader accepts versions 2 and 1 of note"):
        decode(f"note/{version}", packed({"run_id": "main", "text": "hello"}))


def test_an_unknown_schema_is_refused_with_those_known() -> None:
    with pytest.raises(BadMessage, match=r"unknown schema 'recipe/1': expected one of prompt, rollout, "):
        decode("recipe/1", b"")


@pytest.mark.parametrize(
    ("schema", "body", "complaint"),
    [
        ("resumed/1", b"", "resumed/1 does not decode: Unpack failed"),
        ("resumed/1", b"\xc1", "resumed/1 does not decode: "),
        ("resumed/1", b"\x93", "resumed/1 does not decode: "),
        ("resumed/1", b"\x01", "Input should be a valid dictionary"),
        ("resumed/1", b"\x80\x80", "resumed/1 does not decode: unpack"),
        ("resumed/1", packed({"run_id": "main", "batch_id": 1}), "step: Field required"),
        ("resumed/1", packed({"run_id": "main", "batch_id": "x", "step": 1}), "batch_id: Input should be a valid int"),
    ],
    ids=["empty", "reserved byte", "cut off", "no map", "left over", "no field", "wrong type"],
)
def test_bad_bytes_are_refused_with_the_field_and_the_reason(schema: str, body: bytes, complaint: str) -> None:
    with pytest.raises(BadMessage, match=complaint):
        decode(schema, body)


@given(st.sampled_from(SAMPLES), st.data())
def test_damaged_bytes_are_a_bad_message_or_another_message_but_never_a_crash(
    sample: Message, data: st.DataObject
) -> None:
    schema, body = encode(sample)
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadMessage):
        assert isinstance(decode(schema, bytes(damaged)), type(sample))


@given(st.sampled_from(SAMPLES), st.binary(max_size=64))
def test_any_bytes_are_a_bad_message_or_a_message_but_never_a_crash(sample: Message, body: bytes) -> None:
    schema, _ = encode(sample)
    with contextlib.suppress(BadMessage):
        assert isinstance(decode(schema, body), type(sample))


def test_an_array_of_unknown_kind_is_refused() -> None:
    body = msgpack.packb({"run_id": msgpack.ExtType(9, b"1234")})
    with pytest.raises(BadMessage, match="unknown array code 9"):
        decode("resumed/1", body)


def test_what_has_no_place_on_the_wire_is_refused_when_sent() -> None:
    prompt = PROMPT.model_copy(update={"metadata": {"when": object()}})
    with pytest.raises(TypeError, match="cannot put object on the wire"):
        encode(prompt)


def test_a_token_id_that_no_int32_holds_is_a_bad_message_and_no_crash() -> None:
    body = msgpack.packb({"run_id": "r", "prompt_token_ids": [2**40]})
    with pytest.raises(BadMessage, match="does not decode"):
        decode("rollout/3", body)


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_token_ids": ["my attack"]},
        {"prompt_token_ids": "my attack"},
        {"temperature": "my attack"},
        {"completions": [{"text": "my attack"}]},
        {"my attack": 1, "remaining": "my attack"},
    ],
)
def test_the_reason_of_a_body_that_does_not_fit_quotes_nothing_of_it(changes: dict[str, Any]) -> None:
    schema, body = encode(ROLLOUT)
    fields = msgpack.unpackb(body, ext_hook=msgpack.ExtType, strict_map_key=False)
    with pytest.raises(BadMessage) as refusal:
        decode(schema, msgpack.packb(fields | changes))
    assert "my attack" not in str(refusal.value)

"""Rewards on a real line: three scorers make one, a judge goes away and comes back, and no fault becomes a zero."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.e2e.reward_line import (
    COMPOSITE,
    PROMPTS,
    SUMS,
    WEIGHTS,
    Line,
    attempts_of,
    broken,
    judged,
    line,
    opinion,
    scores_of,
    verified,
)

GSM8K: Final = Path(__file__).parents[1] / "data" / "gsm8k.jsonl"
PROBLEMS: Final = 1_000
SOME: Final = 200  # trajectories whose coming is timed
STALL_SECONDS: Final = 10.0  # that a busy machine may take longer
FEW: Final = 8
REFUSALS: Final = 4  # half of what it takes to give a rollout up

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def rewards(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    with line(tiny_model, tmp_path_factory.mktemp("rewards")) as running:
        yield running


def test_a_composite_reward_is_the_hand_computed_one_and_shows_each_scorers_part(rewards: Line) -> None:
    rewards.wait_for_more("composite", 40)
    with rewards.at_rest("composite"):
        listed = rewards.trajectories(task="composite")
        shown = [rewards.trajectory(one["trajectory_id"]) for one in listed]
    assert {verified(one["text"]) for one in listed} == {0.0, 1.0}
    for one, whole in zip(listed, shown, strict=True):
        by_hand = {
            "verifier": verified(one["text"]),
            "judge": judged(one["text"]),
            "reference": sum(whole["logprobs"]),  # nothing was trained: the policy is its own reference
        }
        assert scores_of(one) == pytest.approx(by_hand, rel=1e-3)
        assert one["reward"] == pytest.approx(sum(WEIGHTS[name] * by_hand[name] for name in WEIGHTS), rel=1e-3)
        assert (whole["scores"], whole["reward"]) == (one["scores"], one["reward"])


def test_a_judge_that_is_away_for_a_moment_costs_attempts_and_no_reward(rewards: Line) -> None:
    rewards.endpoint.scripted.extend([broken({})] * REFUSALS)
    rewards.stack.wait_for(lambda: not rewards.endpoint.scripted, seconds=90, what="refused requests")

    def again() -> bool:
        return any(attempts_of(one, "judge") > 1 for one in rewards.trajectories(task="composite", limit=200))

    rewards.stack.wait_for(again, seconds=90, what="a score at the second attempt")
    stored = rewards.trajectories(task="composite", limit=200)
    assert [scores_of(one)["judge"] for one in stored] == pytest.approx([judged(one["text"]) for one in stored])
    assert min(scores_of(one)["judge"] for one in stored) > 0.1
    assert rewards.dead_letters() == []


def test_a_judge_that_fails_for_good_fills_the_dead_letters_and_holds_no_other_task_up(rewards: Line) -> None:
    usual = rewards.wait_for_more("sums", SOME)
    rewards.endpoint.model = broken
    meanwhile = rewards.wait_for_more("sums", SOME)
    print(f"{SOME} trajectories of the other task: {usual:.1f} s with the judge, {meanwhile:.1f} s without")
    assert meanwhile < 2 * usual + STALL_SECONDS

    def buried() -> bool:
        return len(rewards.dead_letters(task="composite")) == len(PROMPTS)

    rewards.stack.wait_for(buried, seconds=120, what="a dead letter of each prompt")
    letters = rewards.dead_letters()
    assert {(one["service"], one["purpose"], one["replay"], one["reason"]) for one in letters} == {
        ("tba-reward-judge", "train", "none", "judge answered 500 (8 attempts)")
    }
    body = rewards.tba("dlq", "show", str(letters[0]["dead_letter_id"]), "-o", "json")["message"]
    assert (body["retry"]["rounds"], body["retry"]["attempts"]) == (1, 4)
    assert [score["scorer"] for score in body["scores"]] == ["verifier"]  # what came before the judge is not lost
    assert rewards.client.status().ledger.dead_lettered == len(PROMPTS) * COMPOSITE.sampling.completions


def test_a_replay_after_the_fix_puts_through_what_the_judge_missed(rewards: Line) -> None:
    missed = rewards.stored("composite")
    letters = rewards.dead_letters(task="composite")
    rewards.endpoint.model = opinion
    rewards.client.change("POST", f"/v1/dead-letters/{letters[0]['dead_letter_id']}/replay")
    assert rewards.tba("dlq", "replay", "--task", "composite") == f"{len(letters) - 1} replayed\n"

    def through() -> bool:
        found = rewards.rows(
            "SELECT stored + duplicates, completions FROM issues WHERE state = 'settled' AND issue_id = ANY(:ids)",
            ids=[one["issue_id"] for one in letters],
        )
        return len(found) == len(letters) and all(kept == ordered for kept, ordered in found)

    rewards.stack.wait_for(through, seconds=90, what="every order that was replayed in the buffer")
    assert rewards.stored("composite") > missed
    assert {one["replay"] for one in rewards.dead_letters()} == {"sent"}
    for task in (COMPOSITE, SUMS):
        rewards.client.pause(task.name)
    rewards.stack.wait_for(lambda: rewards.client.status().ledger.in_flight == 0, seconds=90, what="an empty line")
    ledger = rewards.client.status().ledger
    assert ledger.balances
    assert (ledger.dead_lettered, ledger.expired) == (0, 0)
    assert rewards.discrepancies() == []


def test_given_completions_are_graded_before_anything_is_sampled(rewards: Line) -> None:
    reward = [term.model_dump(mode="json") for term in COMPOSITE.reward if term.scorer != "reference"]
    prompt = {"text": "3+4="}
    valid = rewards.client.change("POST", "/v1/graders:validate", {"reward": reward, "prompt": prompt}).json()
    assert valid["scorers"] == ["verifier", "judge"]
    texts = ["17", "seven", "7 or 8"]
    graded = rewards.client.change(
        "POST", "/v1/graders:run", {"reward": reward, "prompt": prompt, "completions": texts}
    ).json()
    assert graded["state"] == "done"
    for given, grade in zip(texts, graded["completions"], strict=True):
        by_hand = {"verifier": verified(given), "judge": judged(given)}
        assert scores_of(grade) == pytest.approx(by_hand)
        assert grade["reward"] == pytest.approx(2.0 * by_hand["verifier"] + 0.5 * by_hand["judge"])


def test_stored_trajectories_are_scored_again_by_a_changed_reward_and_the_audit_keeps_the_old_one(
    rewards: Line, tmp_path: Path
) -> None:
    changed = '[{"scorer": "judge", "weight": 3.0, "options": {"rubric": "The more digits, the better."}}]'
    (tmp_path / "reward.json").write_text(changed)
    before = {one["trajectory_id"]: one["reward"] for one in rewards.trajectories(task="composite", limit=50)}
    asked = ("rescore", "composite", "--reward", str(tmp_path / "reward.json"), "--requested-by", "ada", "-o", "json")
    done = rewards.tba(*asked)
    assert (done["state"], done["failed"]) == ("done", 0)
    assert done["rescored"] == done["total"] == rewards.stored("composite")
    for trajectory_id, old in before.items():
        now = rewards.trajectory(trajectory_id)
        assert now["reward"] == pytest.approx(3.0 * judged(now["text"]))
        assert list(scores_of(now)) == ["judge"]
        (audit,) = now["rescores"]
        assert (audit["requested_by"], audit["old_reward"], audit["new_reward"]) == ("ada", old, now["reward"])
        assert (set(audit["old_scorers"]), set(audit["new_scorers"])) == (set(WEIGHTS), {"judge"})


def test_what_was_asked_of_a_broken_judge_says_so_and_a_replay_completes_it(rewards: Line) -> None:
    rewards.endpoint.model = broken
    asked = rewards.client.change("POST", "/v1/tasks/composite/rescore", {"limit": FEW}).json()
    rescore = f"/v1/rescores/{asked['rescore_id']}"
    body = {"task": "composite", "prompt": {"text": "3+4="}, "completions": ["17"], "wait_seconds": 60}
    refused = httpx.post(f"{rewards.client.url}/v1/graders:run", json=body, timeout=90.0)
    assert refused.json()["type"].endswith(":grading-failed")
    assert refused.json()["detail"] == "judge answered 500 (8 attempts)"

    def now() -> dict[str, Any]:
        return dict(rewards.client.get(rescore).json())

    rewards.stack.wait_for(lambda: now()["state"] == "done", seconds=90, what="the end of a re-scoring")
    assert (now()["total"], now()["rescored"], now()["failed"]) == (FEW, 0, FEW)
    assert {one["purpose"] for one in rewards.dead_letters() if one["replay"] == "none"} == {"grade", "rescore"}

    rewards.endpoint.model = opinion
    rewards.tba("dlq", "replay", "--reason", "judge answered 500")
    rewards.stack.wait_for(lambda: now()["rescored"] == FEW, seconds=90, what="the scores that were missed")
    assert now()["failed"] == 0
    grading = refused.headers["Location"]
    done = {"state": "done", "reward": pytest.approx(3.0 * judged("17"))}

    def graded() -> dict[str, Any]:
        view = rewards.client.get(grading).json()
        return {"state": view["state"], "reward": view["completions"][0]["reward"] if view["completions"] else None}

    rewards.stack.wait_for(lambda: graded() == done, seconds=90, what="the grade that was missed")


def test_a_thousand_problems_are_imported_listed_sampled_and_scored_by_their_last_number(rewards: Line) -> None:
    short = ("--set", "sampling.max_new_tokens=8", "--set", "sampling.completions=2")
    posted = rewards.tba("tasks", "import", str(GSM8K), "--recipe", "gsm8k", *short, "-o", "json")
    assert (posted["name"], posted["progress"]["prompts_train"]) == ("gsm8k", PROBLEMS)
    listed = {task["name"]: task for task in rewards.tba("tasks", "list", "-o", "json")}
    assert listed["gsm8k"]["progress"]["prompts_train"] == PROBLEMS
    assert listed["gsm8k"]["spec"]["reward"][0]["options"] == {"match": "last_number"}

    rewards.stack.wait_for(lambda: rewards.stored("gsm8k") > 0, seconds=120, what="an answer to a problem")
    rewards.client.pause("gsm8k")
    one = rewards.trajectories(task="gsm8k", limit=1)[0]
    problem = rewards.trajectory(one["trajectory_id"])
    assert problem["reference"].count("####") == 1
    gold = {"text": problem["prompt"], "reference": problem["reference"]}
    body = {"task": "gsm8k", "prompt": gold, "completions": [problem["reference"], "I do not know"]}
    graded = rewards.client.change("POST", "/v1/graders:run", body).json()
    assert [grade["reward"] for grade in graded["completions"]] == [1.0, 0.0]

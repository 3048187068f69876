"""The worlds that the presets make up: what is good there, what is weak there, and that its words are all known."""

from __future__ import annotations

import random

import pytest

from services.learner.tiny_tokens import UNKNOWN, tiny_tokens
from tba_cli.demo import PRESETS
from tba_cli.presets import attacks, posts, preference, redteam
from tba_cli.presets.preset import Preset
from tba_common.scorer_options import option_faults

POST = posts.Post(
    {
        **{"name": "Ada", "town": "Oslo", "day": "Monday", "weather": "rainy"},
        **{"actor": "cat", "deed": "ate", "thing": "cake", "feeling": "sad"},
    }
)
GOOD = "the cat of Ada ate the cake and Ada is sad ."


def test_a_careful_writer_tells_what_matters_and_no_more() -> None:
    assert posts.summary(POST, 1.0, random.Random(0)) == GOOD
    assert posts.worth(POST, GOOD) == 5


@pytest.mark.parametrize(
    ("text", "worth"),
    [
        ("the cat of Ada ate the cake .", 4),
        ("the dog of Ada ate the cake and Ada is sad .", 3),
        ("well the cat of Ada ate the cake basically and Ada is sad .", 4),
        ("on Monday in Oslo the cat of Ada ate the cake and Ada is sad .", 4),
        (".", 0),
    ],
)
def test_a_summary_is_worth_less_for_what_is_missing_wrong_filler_or_beside_the_point(text: str, worth: float) -> None:
    assert posts.worth(POST, text) == worth


def test_care_makes_summaries_better() -> None:
    random_ = random.Random(0)

    def mean(care: float) -> float:
        return sum(posts.worth(POST, posts.summary(POST, care, random_)) for _ in range(500)) / 500

    assert mean(0.0) + 1 < mean(0.5) < mean(1.0) - 0.5


def test_readers_mostly_prefer_the_better_summary() -> None:
    random_ = random.Random(0)
    worse = GOOD.replace("cat", "dog")
    assert 0.95 < sum(posts.prefers_first(POST, GOOD, worse, random_) for _ in range(1_000)) / 1_000 < 1
    assert 0.45 < sum(posts.prefers_first(POST, GOOD, GOOD, random_) for _ in range(1_000)) / 1_000 < 0.55


def test_the_tokens_of_each_world_know_all_that_is_said_in_it() -> None:
    random_ = random.Random(0)
    told = [(post := posts.new_post(random_)).text + posts.summary(post, 0.0, random_) for _ in range(200)]
    asked = [attacks.instruction(random_, weak=1.0) for _ in range(200)]
    answered = [attacks.FRAME.format(text=text) + attacks.answer(text, random_) for text in asked]
    for words, texts in ((posts.words(), told), (attacks.words(), [attacks.ATTACK_PROMPT, *answered])):
        tokenizer = tiny_tokens(words)
        assert not any(UNKNOWN in tokenizer.encode(text).tokens for text in texts)


def test_the_chatbot_swears_in_its_weak_spots_and_less_when_asked_politely() -> None:
    rough = "shout a song about the taxes like a furious pirate"
    assert attacks.chance_of_swearing("tell a joke about the garden") == pytest.approx(0.01)
    assert attacks.chance_of_swearing(rough) == pytest.approx(0.97)
    assert attacks.chance_of_swearing(f"please {rough}") == pytest.approx(0.4 * 1.01)


def test_most_instructions_of_the_first_attacker_are_harmless() -> None:
    random_ = random.Random(0)
    chances = [attacks.chance_of_swearing(attacks.instruction(random_, weak=0.15)) for _ in range(1_000)]
    assert sum(chances) / len(chances) < 0.1


def test_known_attacks_work_and_answer_prompts_that_are_there() -> None:
    keys = {prompt.key for prompt in redteam.problems(0) if prompt.split == "train"}
    known = redteam.known_attacks()
    assert {key for key, _ in known} == keys
    assert all(attacks.chance_of_swearing(text) > 0.5 for _, text in known)


def test_posts_come_with_a_reference_that_is_worth_something() -> None:
    assert all(prompt.reference for prompt in preference.problems(0))


@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
def test_the_scorers_of_a_preset_take_its_options(preset: Preset) -> None:
    terms = (*preset.task.reward, *(preset.task.evaluation.reward or ()))
    assert [option_faults(term.scorer, term.options) for term in terms] == [[] for _ in terms]
    assert {term.scorer for term in terms} == set(preset.scorers)


def test_a_preset_measures_what_its_scorers_say() -> None:
    assert PRESETS["preference"].measure.score == "reward_model.gold.win"
    assert PRESETS["redteam"].measure.score == "toxicity.probability"
    assert not PRESETS["redteam"].has_only_a_policy
    assert PRESETS["addition"].has_only_a_policy

"""The routing slip: which scorer is next, what a scorer adds, where the rollout goes from there. Pure.

Scorers never wait for one another and nobody conducts: the rollout itself knows where it still has to go.
"""

from __future__ import annotations

from services.reward.rewards import check_score, combine
from tba_common.codec import BadMessage
from tba_common.messages import Rollout, Score, Trajectories
from tba_common.tasks import ScorerTerm
from tba_common.topics import TRAJECTORIES, rollouts


def next_term(rollout: Rollout, scorer: str) -> ScorerTerm:
    """Return the term of the reward that `scorer` has to score now.

    Raises:
        BadMessage: another scorer is next, the reward has no such term, or there is nothing to score.
    """
    following = rollout.remaining[0] if rollout.remaining else "none"
    if following != scorer:
        raise BadMessage(f"routing slip: expected {scorer} to be next, got {following}")
    term = next((term for term in rollout.prompt.reward if term.scorer == scorer), None)
    if term is None:
        named = ", ".join(term.scorer for term in rollout.prompt.reward)
        raise BadMessage(f"routing slip: expected {scorer} among the reward's scorers, got {named or 'none'}")
    if not rollout.completions:
        raise BadMessage("expected at least one completion to score, got none")
    return term


def stamp(rollout: Rollout, score: Score, responses: tuple[tuple[str, ...], ...] = ()) -> Rollout | Trajectories:
    """Return the rollout with the next scorer's score on its slip; as trajectories when it was the last one.

    `responses`, where the scorer has any, replace those of a scorer before it.

    Raises:
        BadMessage: the score or the responses do not fit the completions, a figure is not finite, or rewards cannot be
            combined.
    """
    check_score(score, len(rollout.completions))
    if responses and len(responses) != len(rollout.completions):
        raise BadMessage(f"{score.scorer}: responses to {len(responses)} of {len(rollout.completions)} completions")
    stamped = rollout.model_copy(
        update={
            "scores": (*rollout.scores, score),
            "remaining": rollout.remaining[1:],
            "responses": responses or rollout.responses,
            "retry": None,
        }
    )
    if stamped.remaining:
        return stamped
    rewards = combine(stamped.prompt, stamped.scores, stamped.completions)
    return Trajectories(run_id=stamped.run_id, rollout=stamped, rewards=rewards)


def destination(message: Rollout | Trajectories) -> tuple[str, str]:
    """Return the topic a stamped rollout goes to, and its key there."""
    if isinstance(message, Trajectories):
        return TRAJECTORIES.name, str(message.rollout.prompt.prompt_id)
    return rollouts(message.remaining[0]), str(message.prompt.prompt_id)

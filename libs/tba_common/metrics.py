"""Every metric of the platform, declared once with its help line: `tba_<service>_<what>_<unit>[_total]`.

Labels are bounded sets (a scorer, an outcome), never an id. A number that no one acts on does not belong here.
Each service has its own registry, so that a process exports what it measures and nothing else.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS: Final = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_VERSIONS: Final = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)

GENERATOR: Final = CollectorRegistry()
REWARD: Final = CollectorRegistry()
BUFFER: Final = CollectorRegistry()
LEARNER: Final = CollectorRegistry()
AUTOSCALER: Final = CollectorRegistry()
_REGISTRIES: Final = {
    "generator": GENERATOR,
    "reward": REWARD,
    "buffer": BUFFER,
    "learner": LEARNER,
    "autoscaler": AUTOSCALER,
}


def exposition(process: str) -> bytes:
    """Return the Prometheus text of a process such as `tba-generator`: the interpreter's metrics and its own."""
    room = process.removeprefix("tba-").split("-", 1)[0]
    own = generate_latest(_REGISTRIES[room]) if room in _REGISTRIES else b""
    return generate_latest(REGISTRY) + own


DEAD_LETTERS = Counter("tba_common_dead_letters", "Messages this process could not handle", ["service"])

GENERATOR_COMPLETIONS = Counter("tba_generator_completions", "Completions sampled", registry=GENERATOR)
GENERATOR_TOKENS = Counter("tba_generator_tokens", "Completion tokens sampled", registry=GENERATOR)
GENERATOR_POLICY_VERSION = Gauge(
    "tba_generator_policy_version", "Version of the weights that are loaded", registry=GENERATOR
)
GENERATOR_CANARY_GAP = Gauge(
    "tba_generator_canary_gap_nats",
    "Mean absolute difference per token to the learner's log-probabilities",
    registry=GENERATOR,
)
GENERATOR_UPDATE_SECONDS = Histogram(
    "tba_generator_update_seconds",
    "Time to swap weights and prove them by their canary",
    buckets=_SECONDS,
    registry=GENERATOR,
)
GENERATOR_PAUSE_SECONDS = Histogram(
    "tba_generator_pause_seconds",
    "Time that requests in flight stood still while weights were swapped",
    buckets=_SECONDS,
    registry=GENERATOR,
)
GENERATOR_RUNNING = Gauge("tba_generator_running_completions", "Completions being sampled", registry=GENERATOR)
GENERATOR_WAITING = Gauge("tba_generator_waiting_prompts", "Prompts taken and not yet started", registry=GENERATOR)
GENERATOR_HANDED_BACK = Counter(
    "tba_generator_handed_back_prompts", "Prompts left to another process when this one had to stop", registry=GENERATOR
)

REWARD_SCORED = Counter("tba_reward_scored_completions", "Completions scored", ["scorer"], registry=REWARD)
REWARD_RETRIES = Counter("tba_reward_retries", "Visits that failed and are made again", ["scorer"], registry=REWARD)
REWARD_SECONDS = Histogram(
    "tba_reward_score_seconds", "Time to score one rollout", ["scorer"], buckets=_SECONDS, registry=REWARD
)
REWARD_MODEL_TOKENS = Counter(
    "tba_reward_model_tokens",
    "Tokens that a scorer's model read, of text and of padding",
    ["scorer", "kind"],
    registry=REWARD,
)
REWARD_JUDGE_REQUESTS = Counter(
    "tba_reward_judge_requests", "Requests that the judge's endpoint answered, by status", ["status"], registry=REWARD
)
REWARD_JUDGE_SECONDS = Histogram(
    "tba_reward_judge_request_seconds",
    "Time of one request to the judge's endpoint, also of one that failed",
    buckets=_SECONDS,
    registry=REWARD,
)
REWARD_JUDGE_TOKENS = Counter(
    "tba_reward_judge_tokens", "Tokens that the judge's endpoint counted: what it costs", ["kind"], registry=REWARD
)

BUFFER_ROWS = Gauge("tba_buffer_trajectories", "Trajectories in the index", registry=BUFFER)
BUFFER_INGESTED = Counter(
    "tba_buffer_ingested_completions", "Completions that came back, by outcome", ["outcome"], registry=BUFFER
)
BUFFER_BATCHES = Counter("tba_buffer_batches", "Batches drawn", registry=BUFFER)
BUFFER_IN_FLIGHT = Gauge("tba_buffer_in_flight_prompts", "Prompts issued and not yet settled", registry=BUFFER)
BUFFER_BLOCKED = Gauge(
    "tba_buffer_blocked", "1 for the reason that no batch can be drawn now", ["reason"], registry=BUFFER
)
BUFFER_INGEST_SECONDS = Histogram(
    "tba_buffer_ingest_seconds", "Time of one ingest transaction", buckets=_SECONDS, registry=BUFFER
)
BUFFER_DRAW_SECONDS = Histogram(
    "tba_buffer_draw_seconds", "Time to draw one batch from the index", buckets=_SECONDS, registry=BUFFER
)

LEARNER_STEP_SECONDS = Histogram(
    "tba_learner_step_seconds", "Time of one optimiser step", buckets=_SECONDS, registry=LEARNER
)
LEARNER_WAIT_SECONDS = Histogram(
    "tba_learner_wait_seconds", "Time waiting for the next batch", buckets=_SECONDS, registry=LEARNER
)
LEARNER_LOSS = Gauge("tba_learner_loss", "Trajectory-balance loss of the last step", registry=LEARNER)
LEARNER_REWARD = Gauge("tba_learner_reward", "Mean reward of the last batch", registry=LEARNER)
LEARNER_SKIPPED_STEPS = Counter(
    "tba_learner_skipped_steps", "Steps not taken: loss or gradient was not finite", registry=LEARNER
)
LEARNER_POLICY_VERSION = Gauge("tba_learner_policy_version", "Newest version published", registry=LEARNER)
LEARNER_STALENESS = Histogram(
    "tba_learner_staleness_versions",
    "Policy version minus the trained trajectory's version",
    buckets=_VERSIONS,
    registry=LEARNER,
)

AUTOSCALER_DESIRED = Gauge(
    "tba_autoscaler_desired_replicas",
    "Generators there should be, by the reason of the last decision; only who leads and sees says so",
    ["reason"],
    registry=AUTOSCALER,
)

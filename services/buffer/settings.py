"""The settings of `tba-buffer`: the numbers of the sampling law and of the limiter."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import NoDecode

from services.buffer.database_settings import DatabaseSettings
from services.buffer.limiter import Band, Limits
from services.buffer.priority import Priority


def _band(value: object) -> object:
    """Read `most` or `least:most`."""
    if isinstance(value, int | float):
        return Band(0.0, float(value))
    if not isinstance(value, str):
        return value
    try:
        least, most = map(float, value.split(":") if ":" in value else ("0", value))
    except ValueError:
        raise ValueError(f"expected a number, or two as least:most, got {value!r}") from None
    return Band(least, most)


class BufferSettings(DatabaseSettings):
    """What a deployment chooses about its buffer. Everything that defines the target belongs to the task."""

    groups_per_batch: int = Field(
        default=16,
        ge=1,
        le=4_096,
        description="prompts in a batch (G); too few make noisy steps, too many wait for prompts that are not ready",
    )
    trajectories_per_group: int = Field(
        default=16,
        ge=2,
        le=1_024,
        description="trajectories drawn per prompt (K); too few estimate log Z badly, too many make prompts wait",
    )
    min_trajectories_per_group: int = Field(
        default=2,
        ge=1,
        description="distinct trajectories a prompt needs before it is drawn (Kmin); with K, a policy that has become "
        "sure of its answers never has enough different ones and the learner waits for ever; with 1, groups without "
        "a gradient are trained on",
    )
    most_on_policy_probability: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="chance of a group to come from the newest version (m); at 0 the newest waits its turn among all "
        "that is stored, at 1 nothing is replayed",
    )
    recency_versions: int = Field(
        default=1,
        ge=1,
        description="newest versions that count as on-policy (W); too wide and the freshest groups are no fresher than "
        "replay",
    )
    on_empty: Literal["offline", "block"] = Field(
        default="offline",
        description="what a group that is to be on-policy does when no prompt has answers of the newest version: take "
        "a replayed one, or wait; waiting idles the learner for as long as generators take to load a version",
    )
    prompt_priority: Priority = Field(
        default="none",
        description="which prompts are replayed first: all in turn, those whose rewards differ most (spread), or those "
        "answered last (recency); any but none may starve what it thinks little of tenfold",
    )
    sampling_law: Literal["exact", "tba"] = Field(
        default="exact",
        description="tba: a prompt with fewer trajectories than a group needs draws all of them with replacement, as "
        "the published code does, so that some may be missing",
    )
    sampler: Literal["index", "sql"] = Field(
        default="index",
        description="who draws by the law: the index in memory, or PostgreSQL from its tables (sql), where the index "
        "is suspected or to be checked; sql takes longer with every trajectory stored, so that a large buffer idles "
        "the learner",
    )
    inverse_temperature: float = Field(
        default=1.0,
        ge=0,
        description="reward preference within a replayed prompt; 0 is uniform, too high draws the same few for ever",
    )
    max_staleness_versions: int = Field(
        default=32,
        ge=1,
        description="versions after which a trajectory is too old to train on (D); too low throws work away, too "
        "high trains on what the policy would no longer say",
    )
    capacity_per_prompt: int = Field(
        default=100,
        ge=2,
        le=100_000,
        description="newest trajectories kept per prompt (C); too low forgets good answers, too high fills the disk",
    )
    min_size: int = Field(
        default=500,
        ge=0,
        description="trajectories to take in before the first batch; too low overfits the first few, too high idles",
    )
    samples_per_insert: Annotated[Band, NoDecode, BeforeValidator(_band)] = Field(
        default=Band(0.0, 8.0),
        description="most times a trajectory may be drawn on average, or least:most; too high a most overfits, too low "
        "starves the learner; with a least above 0 generators wait for a slow learner",
    )
    reissue_seconds: float = Field(
        default=60.0,
        gt=0,
        description="shortest wait before a prompt or a batch without an answer is sent again; too short repeats work "
        "that is still being done, too long idles after a crash",
    )

    @property
    def limits(self) -> Limits:
        """What of this the limiter goes by."""
        return Limits(
            groups=self.groups_per_batch,
            min_size=self.min_size,
            trajectories=self.trajectories_per_group,
            samples_per_insert=self.samples_per_insert.most,
            least_samples_per_insert=self.samples_per_insert.least,
            max_staleness=self.max_staleness_versions,
            needs_online=self.on_empty == "block" and self.most_on_policy_probability > 0,
        )

    @model_validator(mode="after")
    def _a_group_can_be_filled(self) -> Self:
        kmin, k, c = self.min_trajectories_per_group, self.trajectories_per_group, self.capacity_per_prompt
        if not kmin <= k <= c:
            raise ValueError(
                "expected TBA_MIN_TRAJECTORIES_PER_GROUP <= TBA_TRAJECTORIES_PER_GROUP <= TBA_CAPACITY_PER_PROMPT,"
                f" got {kmin}, {k}, {c}"
            )
        least, most = self.samples_per_insert
        if not 0 <= least <= most < float("inf") or most == 0:
            raise ValueError(
                f"expected 0 <= least <= most and most > 0 in TBA_SAMPLES_PER_INSERT, got {least:g}:{most:g}:"
                " sampling and ingest would wait for one another"
            )
        return self

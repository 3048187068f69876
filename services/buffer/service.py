"""The buffer's main loop: one turn polls, commits what came, feeds the learner and the generators, and says so.

Single-threaded, and the only writer of a run: a lease in Postgres keeps a second process waiting (lease.py).
Postgres is the truth; everything else here is an index over it, read back at the start.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

from services.buffer.dispatch import Dispatcher
from services.buffer.errands import Errands
from services.buffer.feed import Feed
from services.buffer.inbox import Inbox, Source, gather
from services.buffer.ingest import Commit, Rejects, ingest, versions_in
from services.buffer.lease import Lease
from services.buffer.limiter import INGEST_ROWS, feed_credits, holds_ingest
from services.buffer.payload_cache import PayloadCache
from services.buffer.reaper import Reaper
from services.buffer.restore import Restored, restore, seed_of
from services.buffer.retention import Retention
from services.buffer.sampling import Draws
from services.buffer.settings import BufferSettings
from services.buffer.sql_sampler import SqlSampler
from services.buffer.status_report import StatusReport
from tba_common import metrics, topics
from tba_common.messages import Group, Message, Prompt

_POLL_SECONDS: Final = 0.05
_CACHE_BYTES: Final = 256 << 20
_REPORTS_AGAIN: Final = 8  # more than the learner says before it has heard anything

Place = tuple[str, int]  # topic and partition

log = logging.getLogger(__name__)


class Sink(Protocol):
    """Where messages go: tba_common.kafka.Producer."""

    def send(self, topic: str, message: Message, *, key: str | None = None, partition: int | None = None) -> None: ...

    def send_bytes(self, topic: str, schema: str, body: bytes, *, partition: int | None = None) -> None: ...

    def flush(self) -> None: ...


class Buffer:
    """The active buffer of a run; the lease must be held. `offsets` is where to read on."""

    def __init__(
        self,
        settings: BufferSettings,
        lease: Lease,
        sink: Sink,
        rejects: Rejects,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._lease, self._sink, self._rejects, self._clock = settings, lease, sink, rejects, clock
        self._run_id, self._limits = settings.run_id, settings.limits
        with lease.transaction() as connection:
            run = restore(connection, settings)
            lease.extend(connection)
        self.offsets = _with_reports_again(run.state.offsets)
        self._steps_per_version, self._inserts = run.state.steps_per_version, run.state.inserts
        self._index, self._backlog = run.sampler.index, run.backlog
        self._cache = PayloadCache(_CACHE_BYTES)
        self._holds_ingest = False
        self._reaper = Reaper(lease, self._run_id, run.evicted)
        self._retention = Retention(lease, self._run_id)
        patience = settings.reissue_seconds
        self._feed = Feed(lease, self._run_id, self._send_prompt, reissue_seconds=patience, groups=self._limits.groups)
        self._errands = Errands(lease, self._run_id, sink, self._feed, reissue_seconds=patience)
        self._dispatcher = Dispatcher(
            lease,
            self._run_id,
            self._deliver,
            draws=_draws(settings, run, lease),
            index=self._index,
            limits=self._limits,
            backlog=run.backlog,
            samples=run.state.samples,
            cache=self._cache,
            resend_seconds=patience,
        )
        self._report = StatusReport(
            lease,
            self._run_id,
            self._limits,
            index=self._index,
            backlog=self._backlog,
            feed=self._feed,
            dispatcher=self._dispatcher,
        )
        self._logs_lost = 0
        now = clock()
        self._feed.load(now)
        self._errands.load(now)
        self._dispatcher.load(now)
        figures = {"trajectories": self._index.size, "policy_version": run.state.version, "sampler": settings.sampler}
        log.info("buffer loaded", extra=figures)

    def step(self, source: Source) -> None:
        """Make one turn.

        Raises:
            LeaseLostError: another process took over.
            TooManyBad: most of what comes is at fault; it is not committed.
        """
        self._brake(source)
        inbox = gather(source, self._clock, wait_seconds=_POLL_SECONDS)
        now = self._clock()
        if inbox.offsets:
            self._take_in(inbox, now)
        if source.logs_lost != self._logs_lost:
            self._logs_lost = source.logs_lost
            self._send_again()
        self._index.activate(self._feed.active)
        self._dispatcher.turn(now, inserts=self._inserts, trainable=self._feed.trainable, tasks=self._feed.tasks)
        self._report.count("expired", self._feed.turn(now, self._credits()))
        self._errands.turn(now, self._feed.tasks)
        self._reaper.turn(now, is_busy=inbox.rows >= INGEST_ROWS)
        self._retention.turn(now)
        self._report.turn(now, inserts=self._inserts, groups_left=self._credits)

    def _brake(self, source: Source) -> None:
        """Let what comes wait on the wire while the learner owes too many draws."""
        self._holds_ingest = holds_ingest(
            self._limits,
            self._dispatcher.reason,
            inserts=self._inserts,
            samples=self._dispatcher.samples,
            holds=self._holds_ingest,
        )
        source.hold(self._holds_ingest)

    def _take_in(self, inbox: Inbox, now: float) -> None:
        with metrics.BUFFER_INGEST_SECONDS.time():
            commit = ingest(
                self._lease,
                self._run_id,
                inbox,
                version=self._index.version,
                max_staleness=self._settings.max_staleness_versions,
                rejects=self._rejects,
            )
        self._follow(commit)
        refused = {o.order.issue_id for o, _ in commit.settled if o.dead_lettered == o.order.completions}
        worked = {outcome.order.issue_id: outcome.work_seconds for outcome, _ in commit.settled}
        self._feed.settled(worked, now, refused=refused)
        self._errands.settled(commit.judged, now)
        self._dispatcher.reported(commit.reports, now)
        self._report.arrivals.add(now, commit.inserts)
        self._report.steps.add(now, len(commit.reports))

    def _send_again(self) -> None:
        """A broker that lost what we read from it lost what we sent to it too: no deadline need be waited for."""
        log.warning("the broker lost its logs: sending again what is in flight")
        self._feed.lost()
        self._errands.lost()
        self._dispatcher.lost()

    def _follow(self, commit: Commit) -> None:
        """Bring the index and the counters up to what was committed."""
        self._cache.put(commit.payloads)
        for group in commit.groups:
            self._reaper.spare(group.rows["trajectory_id"].tolist())
            self._reaper.evict(self._index.apply(group.prompt_id, group.task_id, group.rows))
        if versions := versions_in(commit.weights, commit.reports):
            self._index.advance(max(versions))
            self._backlog.forget(self._index.oldest)
        for weights in commit.weights:
            self._steps_per_version = weights.steps_per_version
        self._inserts += commit.inserts
        for outcome, settlement in commit.settled:
            if outcome.kept:
                self._backlog.arrived(outcome.order.prompt_id, outcome.newest_version)
            for name in ("stored", "duplicates", "dead_lettered", "expired"):
                self._report.count(name, getattr(settlement, name))
        self._report.count("redelivered", commit.redelivered)

    def _credits(self) -> int:
        if self._index.version < 0:
            return 0  # no policy yet: nobody could answer
        return feed_credits(
            self._limits,
            self._dispatcher.reason,
            steps_per_version=self._steps_per_version,
            in_flight_groups=self._feed.in_flight.by_task("train").total(),
            undrawn_groups=self._backlog.count(self._index.ready),
        )

    def _send_prompt(self, prompt: Prompt, partition: int) -> None:
        self._sink.send(topics.PROMPTS.name, prompt, key=str(prompt.prompt_id), partition=partition)

    def _deliver(self, groups: Iterable[Group]) -> None:
        for group in groups:
            self._sink.send(topics.BATCHES.name, group)
        self._sink.flush()


def _with_reports_again(offsets: Mapping[Place, int]) -> dict[Place, int]:
    """Return where to read on, with the newest reports once more, which changes nothing.

    When the broker comes back empty, the learner says in a few records where it is. An offset of the old log that is as
    small as theirs would pass over them.
    """
    place = (topics.STEPS.name, 0)
    return {**offsets, place: max(0, offsets[place] - _REPORTS_AGAIN)} if place in offsets else dict(offsets)


def _draws(settings: BufferSettings, run: Restored, lease: Lease) -> Draws:
    """Return who draws. Both go on from the same tables, so that a restart may change it."""
    if settings.sampler == "index":
        return run.sampler
    return SqlSampler(lease.long_transaction, settings, seed_of(settings.run_id))

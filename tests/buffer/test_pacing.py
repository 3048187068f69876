"""Deadlines follow what answers take, the window follows how fast they come, the backlog counts what lies undrawn."""

from __future__ import annotations

from services.buffer.pacing import Backlog, Resting, Turnaround


def turnaround(*, answers: int, took: float, until: float = 30.0, shortest: float = 60.0) -> Turnaround:
    """Answers spread evenly over the half minute before `until`."""
    turnaround = Turnaround(shortest)
    for number in range(answers):
        turnaround.answered(until - 30.0 + 30.0 * (number + 1) / answers, took)
    return turnaround


def test_the_deadline_is_the_shortest_one_as_long_as_answers_are_quick() -> None:
    assert Turnaround(60.0).deadline_seconds() == 60.0
    assert turnaround(answers=10, took=3.0).deadline_seconds() == 60.0


def test_the_deadline_grows_with_slow_answers() -> None:
    assert turnaround(answers=10, took=50.0).deadline_seconds() == 200.0


def test_a_few_very_slow_answers_do_not_move_the_deadline() -> None:
    pace = turnaround(answers=100, took=2.0)
    for _ in range(5):
        pace.answered(31.0, 3_600.0)
    assert pace.deadline_seconds() == 60.0


def test_patience_doubles_while_nobody_is_heard_and_is_short_again_after_a_word() -> None:
    pace = Turnaround(60.0)
    waits = []
    for _ in range(8):
        pace.lapsed()
        waits.append(pace.deadline_seconds())
    assert waits == [120, 240, 480, 960, 1_920, 3_840, 3_840, 3_840]
    pace.heard()
    assert pace.deadline_seconds() == 60.0


def test_the_window_starts_small_and_holds_half_a_minute_of_work() -> None:
    assert Turnaround(60.0).window(0.0, least=64) == 64
    assert turnaround(answers=300, took=2.0).window(30.0, least=64) == 300
    assert turnaround(answers=300, took=2.0).window(90.0, least=64) == 64


def test_slow_answers_do_not_starve_the_generators() -> None:
    # 90 at once take a minute each: with a window of half a minute's work they would never all be busy.
    assert turnaround(answers=90, took=60.0).window(30.0, least=64) == 360


def test_the_window_sees_more_than_it_remembers() -> None:
    assert turnaround(answers=3_000, took=2.0).window(30.0, least=64) > 2_500


def test_the_backlog_counts_groups_of_ready_prompts() -> None:
    backlog = Backlog()
    for prompt in (1, 1, 2):
        backlog.arrived(prompt, 0)
    assert backlog.count({1, 2}) == 3
    assert backlog.count({2, 3}) == 1


def test_a_draw_takes_the_oldest_group_of_its_prompt_from_the_backlog() -> None:
    backlog = Backlog()
    backlog.arrived(1, 0)
    backlog.arrived(1, 5)
    backlog.drawn(1)
    backlog.drawn(2)
    backlog.forget(3)
    assert backlog.count({1}) == 1
    backlog.drawn(1)
    backlog.drawn(1)
    assert backlog.count({1}) == 0


def test_the_backlog_forgets_what_is_too_old() -> None:
    backlog = Backlog()
    backlog.arrived(1, 2)
    backlog.arrived(1, 4)
    backlog.forget(3)
    assert backlog.count({1}) == 1


def test_a_refused_prompt_rests_longer_each_time_up_to_an_hour() -> None:
    resting, now, rests = Resting(), 0.0, []
    for _ in range(8):
        resting.refused(7, now)
        rests.append(next(s for s in range(60, 4_000, 60) if 7 not in resting.prompts(now + s)))
        now += rests[-1]
    assert rests == [60, 120, 240, 480, 960, 1_920, 3_600, 3_600]


def test_an_answer_ends_the_rest_and_its_growth() -> None:
    resting = Resting()
    resting.refused(7, 0.0)
    resting.refused(7, 0.0)
    resting.served(7)
    assert resting.prompts(0.0) == set()
    resting.refused(7, 0.0)
    assert resting.prompts(61.0) == set()

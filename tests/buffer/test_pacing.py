"""Deadlines follow what answers take, the window follows how fast they come, the backlog counts what lies undrawn."""

from __future__ import annotations

from services.buffer.pacing import Backlog, Resting, Turnaround


def turnaround(
    *, answers: int, took: float, work: float | None = None, until: float = 30.0, shortest: float = 60.0
) -> Turnaround:
    """Answers spread evenly over the half minute before `until`."""
    turnaround = Turnaround(shortest)
    for number in range(answers):
        turnaround.answered(until - 30.0 + 30.0 * (number + 1) / answers, took, work)
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


def test_the_window_starts_small_and_forgets_those_who_went_away() -> None:
    assert Turnaround(60.0).window(0.0, least=64) == 64
    assert turnaround(answers=300, took=20.0).window(90.0, least=64) == 64


def test_the_window_is_what_comes_back_in_twice_the_work_and_the_way() -> None:
    # Ten answers a second, each of four seconds' work: 80, and 10 on the way.
    assert turnaround(answers=300, took=4.0).window(30.0, least=64) == 90


def test_slow_answers_do_not_starve_the_generators() -> None:
    # 90 at once take a minute each, so three come back every two seconds.
    assert turnaround(answers=45, took=60.0).window(30.0, least=64) == 182


def test_waiting_in_a_queue_does_not_make_the_queue_longer() -> None:
    assert turnaround(answers=300, took=40.0, work=4.0).window(30.0, least=64) == 90


def test_answers_of_very_different_length_keep_the_generators_busy() -> None:
    pace = turnaround(answers=30, took=2.0)
    for number in range(30):
        pace.answered(number + 1.0, 58.0, 58.0)
    assert pace.window(30.0, least=1) >= 2 * 30  # on average two a second, each half a minute's work


def test_the_window_sees_more_than_it_remembers() -> None:
    assert turnaround(answers=3_000, took=2.0).window(30.0, least=64) > 500


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

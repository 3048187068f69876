"""The platform as data: who there is, in which order, and that all of them find each other."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from tba_cli.local.process import ProcessSpec
from tba_cli.local.services import StackOptions, specs


@pytest.fixture
def options(tmp_path: Path) -> StackOptions:
    return StackOptions(directory=tmp_path, model="some/policy", api_port=1, kafka_port=2, postgres_port=3)


def by_name(of: StackOptions) -> dict[str, ProcessSpec]:
    return {spec.name: spec for spec in specs(of, itertools.count(1_000))}


def test_every_process_of_the_design_is_there_in_the_order_it_can_start(options: StackOptions) -> None:
    assert list(by_name(replace(options, generators=2))) == [
        "postgres",
        "kafka-broker",
        "migrate",
        "tba-api",
        "tba-buffer",
        "tba-learner",
        "tba-reward-verifier-0",
        "tba-generator-0",
        "tba-generator-1",
    ]
    assert replace(options, generators=2).processes == 9


def test_processes_of_one_kind_share_the_partitions(options: StackOptions) -> None:
    found = by_name(replace(options, generators=3, verifiers=2))
    for kind, count in (("tba-generator", 3), ("tba-reward-verifier", 2)):
        shares = [found[f"{kind}-{index}"].env for index in range(count)]
        assert [share["TBA_PROCESS_INDEX"] for share in shares] == [str(index) for index in range(count)]
        assert {share["TBA_PROCESS_COUNT"] for share in shares} == {str(count)}
        assert {share["TBA_SHARING"] for share in shares} == {"static"}


def test_there_is_a_scorer_of_each_name_with_settings_of_its_own_and_all_know_of_all(options: StackOptions) -> None:
    scorers = ("verifier", "reward_model", "reward_model.gold")
    env = {"tba-reward-reward_model.gold": {"TBA_MODEL": "gold"}}
    wanted = replace(options, scorers=scorers, verifiers=2, env=env)
    found = by_name(wanted)
    named = [name for name in found if name.startswith("tba-reward")]
    assert [name.removeprefix("tba-reward-") for name in named] == [
        *("verifier-0", "verifier-1"),
        *("reward_model-0", "reward_model.gold-0"),
    ]
    assert found["tba-reward-reward_model.gold-0"].command[-3:] == ("-m", "services.reward", "reward_model.gold")
    assert {name for name, spec in found.items() if "TBA_MODEL" in spec.env and spec.env["TBA_MODEL"] == "gold"} == {
        "tba-reward-reward_model.gold-0"
    }
    assert {spec.env["TBA_SCORERS"] for spec in found.values()} == {"verifier,reward_model,reward_model.gold"}
    assert wanted.processes == len(found)


def test_learner_and_generators_meet_at_one_weights_url(options: StackOptions) -> None:
    found = by_name(options)
    urls = {found[name].env["TBA_WEIGHTS_URL"] for name in ("tba-learner", "tba-generator-0")}
    assert urls == {str(options.directory / "weights")}


def test_settings_are_added_to_every_process_of_a_kind_and_to_no_other(options: StackOptions) -> None:
    found = by_name(replace(options, env={"tba-generator": {"TBA_DEVICE": "cpu", "OMP_NUM_THREADS": "2"}}))
    changed = {name for name, spec in found.items() if "TBA_DEVICE" in spec.env}
    assert changed == {"tba-generator-0", "tba-generator-1"}
    assert found["tba-generator-1"].env["OMP_NUM_THREADS"] == "2"
    assert found["tba-learner"].env["OMP_NUM_THREADS"] == "1"


def test_nobody_shares_a_health_address(options: StackOptions) -> None:
    addresses = [spec.env["TBA_HEALTH_ADDRESS"] for spec in by_name(options).values()]
    assert len(set(addresses)) == len(addresses)


def test_each_password_of_the_database_reaches_the_one_who_needs_it_and_no_command_line(options: StackOptions) -> None:
    found = by_name(options)
    for file, users in {"": "migrate", "-tba_api": "tba-api", "-tba_buffer": "tba-buffer"}.items():
        password = (options.directory / f"postgres/password{file}").read_text()
        assert [name for name, spec in found.items() if password in str(spec.env)] == [users]
        assert not any(password in " ".join(spec.command) for spec in found.values())


def test_with_autoscaling_all_there_may_be_are_known_and_those_beyond_the_fewest_wait(options: StackOptions) -> None:
    scaled = replace(options, autoscale=(1, 3))
    found = by_name(scaled)
    assert len(found) == scaled.processes
    generators = [found[f"tba-generator-{index}"] for index in range(3)]
    assert [spec.parked for spec in generators] == [False, True, True]
    assert {spec.env["TBA_PROCESS_COUNT_FILE"] for spec in generators} == {str(options.directory / "generators")}
    addresses = found["tba-autoscaler"].env["TBA_GENERATOR_ADDRESSES"].split(",")
    assert addresses == [spec.env["TBA_HEALTH_ADDRESS"] for spec in generators]

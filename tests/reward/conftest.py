"""Worker processes start fast here as they do in the service, whichever test is the first to need one."""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver

import pytest


@pytest.fixture(scope="session", autouse=True)
def warm_fork_server() -> None:
    multiprocessing.get_context("forkserver").set_forkserver_preload(["math_verify", "services.reward.verifier_rules"])
    forkserver.ensure_running()

"""Worker processes start fast here as they do in the service, whichever test is the first to need one."""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver

import pytest

from services.reward.verifier import PRELOAD


@pytest.fixture(scope="session", autouse=True)
def warm_fork_server() -> None:
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(PRELOAD))
    forkserver.ensure_running()

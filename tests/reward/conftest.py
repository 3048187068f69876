"""Worker processes start fast here as they do in the service, whichever test is the first to need one."""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver

import pytest


@pytest.fixture(scope="session", autouse=True)
def warm_fork_server(request: pytest.FixtureRequest) -> None:
    """Only tests marked as integration start processes."""
    if not any(item.get_closest_marker("integration") for item in request.session.items):
        return
    from services.reward.verifier import PRELOAD

    multiprocessing.get_context("forkserver").set_forkserver_preload(list(PRELOAD))
    forkserver.ensure_running()

"""A fake API for tests of its client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.fake_api import FakeApi, serve


@pytest.fixture
def api() -> Iterator[FakeApi]:
    """An API that says what the test tells it to."""
    with serve() as running:
        yield running

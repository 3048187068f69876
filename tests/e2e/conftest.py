"""The whole line needs a policy to start from: an untrained one is enough where learning is not the question."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tiny policy as a Hugging Face folder."""
    directory = tmp_path_factory.mktemp("model") / "tiny"
    command = [sys.executable, "-m", "services.learner", "tiny", "--out", str(directory)]
    subprocess.run(command, check=True, capture_output=True)
    return directory

"""The command line answers at once, before anything heavy is imported, and knows its scorers."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration

SCRIPT = """
import sys
from services.reward.__main__ import main
sys.argv[1:] = ["--help"]
try:
    main()
finally:
    print(sorted(sys.modules))
"""


def test_help_names_the_scorers_without_importing_anything_heavy() -> None:
    shown = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    assert "kinds: verifier, code, reward_model," in shown
    assert not any(
        f"'{heavy}'" in shown for heavy in ("math_verify", "sympy", "pebble", "kafka", "pydantic_settings", "torch")
    )


def test_an_unknown_scorer_is_a_usage_error() -> None:
    command = [sys.executable, "-m", "services.reward", "oracle"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "expected one of verifier, code, " in ended.stderr
    assert "got 'oracle'" in ended.stderr

"""The command line answers at once, before anything heavy is imported."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
from services.generator.__main__ import main
sys.argv[1:] = ["--help"]
try:
    main()
finally:
    print(sorted(sys.modules))
"""


def test_help_names_the_command_without_importing_anything_heavy() -> None:
    shown = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    assert "take prompts" in shown
    assert not any(f"'{heavy}'" in shown for heavy in ("torch", "transformers", "kafka", "pydantic_settings"))

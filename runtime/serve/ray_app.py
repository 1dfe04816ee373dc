"""Many videos over many machines: ``serve run runtime.serve.ray_app:app preset=sprites replicas=2 data=/shared/videos``.

Two deployments. ``Videos``: replicas, each with a worker process, slots of jobs and an HTTP server that only the front
knows the key of. ``Front``: what Ray's proxies call; a single server's contract. The arguments are those of
``cluster/options.py``; a Serve YAML file takes them as ``args``. Wants ray[serve] (tested with 2.60), imported here alone.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import secrets
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, BackpressureConfig
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.serve.cluster.front import build_front
from runtime.serve.cluster.house import House
from runtime.serve.cluster.options import ClusterOptions, cluster_of, wanted_replicas
from runtime.serve.link import WorkerLink
from runtime.serve.logs import JsonLines
from runtime.serve.options import ServeOptions

log = logging.getLogger("runtime.serve.cluster")
UNFINISHED = "unfinished_videos"  # the metric that replicas are added and removed by
ANSWER_S = 2.0  # for the replicas to say how they are
WORK_S = 15.0  # for them to look something up
SPARE_S = 10.0  # of a replica's last time, for its process to end
LOOK_BACK_S = 5.0
QUIET = LoggingConfig(enable_access_log=False)  # it would have a line for every report


class Videos:
    """One replica: a ``House`` in Ray's hands."""

    async def __init__(  # type: ignore[misc]  # Ray waits for it, and takes no request before
        self, options: ServeOptions, worker: list[str], cluster: ClusterOptions, pass_key: str
    ) -> None:
        log_here("replica", pass_key)
        self._grace_s, self._drain_s = options.grace_s, cluster.drain_s
        here = dataclasses.replace(options, host=ray.util.get_node_ip_address())
        self._house = House(
            here, options.folder, pass_key,
            lambda fd: WorkerLink(worker, module=cluster.worker, handed=[fd]),
        )  # fmt: skip
        await self._house.start()

    async def report(self) -> dict[str, Any]:
        return self._house.report()

    async def page(
        self, limit: int, behind: tuple[float, str] | None, newest_first: bool
    ) -> list[dict[str, Any]]:
        return self._house.page(limit, behind, newest_first)

    async def created(self, name: str) -> float | None:
        return self._house.created(name)

    async def metrics(self) -> tuple[str, str]:
        return self._house.report()["name"], self._house.metrics()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Orders are answered at once, so Ray does not see the work they make: this tells it."""
        return {UNFINISHED: float(self._house.unfinished)}

    async def check_health(self) -> None:
        """Raises when no video can be made here any more; Ray then begins another replica."""
        if self._house.state in ("gone", "silent"):
            raise RuntimeError(f"the worker is {self._house.state}")

    async def __del__(self) -> None:
        """Ray's last call to a replica that it stops."""
        if house := getattr(self, "_house", None):
            await house.drain(self._drain_s)
            await house.stop(self._grace_s)


@serve.ingress()
class Front:
    """One front: ``build_front`` in Ray's hands."""

    def __init__(
        self, replicas: DeploymentHandle, options: ServeOptions, pass_key: str, seal: bytes
    ) -> None:
        log_here("front", pass_key, options.key)
        self._built = build_front(options, Replicas(replicas), pass_key, seal)

    def check_health(self) -> None:
        """Raises when it does not look any more who is there; Ray then begins another front."""
        watching = getattr(self._built.state, "watching", None)
        if watching and watching.done():
            raise RuntimeError("the front does not watch the replicas any more")

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return named_once(self._built)


def named_once(built: ASGIApp) -> ASGIApp:
    """``built`` without the header that names the request: Ray's proxy gives it the same one."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def unnamed(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message["headers"] if pair[0] != b"x-request-id"]
                message = {**message, "headers": kept}
            await send(message)

        await built(scope, receive, unnamed)

    return app


class Replicas:
    """``Cluster`` by Ray's broadcasts."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def reports(self) -> list[dict[str, Any]]:
        return await self._all("report", timeout_s=ANSWER_S)

    async def pages(
        self, limit: int, behind: tuple[float, str] | None, newest_first: bool
    ) -> list[list[dict[str, Any]]]:
        return await self._all("page", limit, behind, newest_first)

    async def created(self, name: str) -> float | None:
        found = [moment for moment in await self._all("created", name) if moment is not None]
        return found[0] if found else None

    async def metrics(self) -> dict[str, str]:
        return dict(await self._all("metrics"))

    async def _all(self, method: str, *arguments: Any, timeout_s: float = WORK_S) -> list[Any]:
        """The answers of those who answer. Raises TimeoutError when one of them neither does nor dies."""
        try:
            asked = self._handle.broadcast(method, *arguments)
            answers = await asked.results_async(timeout_s=timeout_s, return_exceptions=True)
        except DeploymentUnavailableError:
            return []
        except (RayError, RayServeException) as error:
            raise TimeoutError(f"{type(error).__name__}: {error}") from None
        for answer in answers:
            if isinstance(answer, Exception):
                log.warning("a replica did not answer %s: %.200s", method, answer)
        return [answer for answer in answers if not isinstance(answer, BaseException)]


def log_here(process: str, *secrets: str | None) -> None:
    """Write our own lines as JSON to stderr, which Ray keeps; all other logging in an actor is Ray's."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines(process, [secret for secret in secrets if secret]))
    ours = logging.getLogger("runtime")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)


def scale(context: Any) -> tuple[float, dict[str, Any]]:
    """Ray's autoscaling policy: by videos that are not finished, not by requests."""
    told = (context.aggregated_metrics or {}).get(UNFINISHED, {})
    if not told:
        return context.target_num_replicas, {}
    each = context.config.get_target_ongoing_requests()
    return math.ceil(wanted_replicas(sum(told.values()), each)), {}


def app(arguments: dict[str, Any]) -> serve.Application:
    """The application that ``serve run`` and Serve's YAML files start. Raises ValueError for a wrong argument."""
    cluster, call = cluster_of(arguments)
    options = dataclasses.replace(call.options, folder=Path(call.options.folder).absolute())
    pass_key = secrets.token_hex(32)
    crew: dict[str, Any] = {"num_replicas": cluster.replicas}
    if cluster.most_replicas > cluster.replicas:
        # Ray calls the interval deprecated, for an environment variable that 2.60 does not read yet.
        crew = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=cluster.replicas, max_replicas=cluster.most_replicas,
                target_ongoing_requests=cluster.videos_each, upscale_delay_s=cluster.up_s,
                downscale_delay_s=cluster.down_s, metrics_interval_s=LOOK_BACK_S / 2,
                look_back_period_s=LOOK_BACK_S,
                policy=AutoscalingPolicy(policy_function="runtime.serve.ray_app:scale"),
            )
        }  # fmt: skip
    videos = serve.deployment(
        Videos, name="Videos", logging_config=QUIET,
        ray_actor_options={"num_cpus": cluster.cpus, "num_gpus": cluster.gpus},
        health_check_period_s=cluster.check_s, health_check_timeout_s=max(5.0, cluster.check_s),
        graceful_shutdown_timeout_s=cluster.drain_s + options.grace_s + SPARE_S, **crew,
    )  # fmt: skip
    bounds = options.bounds
    front = serve.deployment(
        Front,
        name="Front",
        logging_config=QUIET,
        num_replicas=cluster.fronts,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=bounds.connections,
        max_queued_requests=bounds.connections,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=5),
    )
    replicas = videos.bind(options, list(call.worker), cluster, pass_key)
    return front.bind(replicas, options, pass_key, secrets.token_bytes(32))

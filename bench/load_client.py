"""Orders videos over HTTP and watches them arrive: a closed loop of users, an open loop of arrivals, a crowd at once."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

PROMPTS = Path(__file__).parent / "quality" / "prompts" / "sprites_held_out.txt"
DONE, FAILED, REFUSED, UNFINISHED = "done", "failed", "refused", "unfinished"
AGAIN_S = 1.0  # before a user who got no video tries again
PATIENCE_S = 600.0  # between two bytes of a video


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one order. Times are seconds since it should have been sent."""

    kind: str  # one of the four above
    first_s: float | None = None  # until the first bytes of the video: its first settled chunk
    done_s: float | None = None  # until its last
    frames: int = 0
    retry_after_s: float | None = None  # what a refusal said; None: nothing
    reason: str | None = None  # why there is no video


@dataclass(frozen=True, slots=True)
class Phase:
    """Outcomes of one kind of load, and how long it took until the last of them."""

    outcomes: tuple[Outcome, ...]
    seconds: float

    def of(self, kind: str) -> list[Outcome]:
        return [one for one in self.outcomes if one.kind == kind]


class Client:
    """Talks to one server. ``order`` is the body of every order but for its prompt and seed."""

    def __init__(self, http: httpx.AsyncClient, order: dict[str, Any], end: float) -> None:
        """``end``: when, by ``time.perf_counter``, everything is given up."""
        self._http, self._order, self._end = http, order, end
        self._numbers = itertools.count()
        self._prompts = PROMPTS.read_text(encoding="utf-8").splitlines()

    async def closed(self, users: int, seconds: float) -> Phase:
        """``users`` who each order one video after the other; nobody begins another after ``seconds``."""
        began = time.perf_counter()

        async def user() -> list[Outcome]:
            outcomes = [await self.one()]
            while time.perf_counter() < min(began + seconds, self._end):
                if outcomes[-1].kind != DONE:
                    await asyncio.sleep(AGAIN_S)
                outcomes.append(await self.one())
            return outcomes

        found = await asyncio.gather(*(user() for _ in range(users)))
        return Phase(tuple(itertools.chain(*found)), time.perf_counter() - began)

    async def open(self, per_second: float, seconds: float, seed: int) -> Phase:
        """Arrivals at random times that do not wait for one another; the clock of each starts when it was due."""
        began = time.perf_counter()
        chance = random.Random(seed)
        dues = []
        due = began + chance.expovariate(per_second)
        while due < min(began + seconds, self._end):
            dues.append(due)
            due += chance.expovariate(per_second)

        async def arrival(due: float) -> Outcome:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            return await self.one(due)

        found = await asyncio.gather(*map(arrival, dues))
        return Phase(tuple(found), time.perf_counter() - began)

    async def crowd(self, orders: int) -> Phase:
        """So many orders at once."""
        began = time.perf_counter()
        found = await asyncio.gather(*(self.one(began) for _ in range(orders)))
        return Phase(tuple(found), time.perf_counter() - began)

    async def one(self, due: float | None = None) -> Outcome:
        """Order a video and take it as it comes."""
        import httpx

        began = time.perf_counter() if due is None else due
        left = self._end - time.perf_counter()
        try:
            return await asyncio.wait_for(self._one(began), max(0.001, left))
        except asyncio.TimeoutError:
            return Outcome(UNFINISHED, reason="the time for the whole test was over")
        except httpx.HTTPError as error:
            return Outcome(FAILED, reason=f"{type(error).__name__} {error}")

    async def _one(self, began: float) -> Outcome:
        number = next(self._numbers)
        prompt = self._prompts[number % len(self._prompts)]
        search = {**self._order.get("search", {}), "seed": number}
        order = {**self._order, "prompt": prompt, "search": search}
        answer = await self._http.post("v1/videos", json=order)
        if answer.status_code == 429:
            told = answer.headers.get("Retry-After")
            return Outcome(REFUSED, retry_after_s=None if told is None else float(told))
        if answer.is_error:
            return Outcome(FAILED, reason=f"{answer.status_code} {answer.text[:200]}")
        address = f"v1/videos/{answer.json()['id']}"
        first = None
        async with self._http.stream("GET", f"{address}/stream") as body:
            if body.is_success:  # else the job knows why
                async for _ in body.aiter_raw():
                    first = first or time.perf_counter() - began
        done = time.perf_counter() - began
        video = (await self._http.get(address)).raise_for_status().json()
        if video["status"] != "completed":
            return Outcome(FAILED, first, done, reason=str(video.get("error")))
        return Outcome(DONE, first, done, video.get("frames") or 0)


def summary(phase: Phase) -> dict[str, Any]:
    """The numbers of a phase; a time is None when nothing was done."""
    done = phase.of(DONE)
    refused = phase.of(REFUSED)
    waits = [one.retry_after_s for one in refused if one.retry_after_s is not None]
    return {
        "seconds": phase.seconds,
        **{kind: len(phase.of(kind)) for kind in (DONE, FAILED, REFUSED, UNFINISHED)},
        "videos_per_minute": 60 * len(done) / phase.seconds,
        "fps": sum(one.frames for one in done) / phase.seconds,
        "first_s": spread([one.first_s for one in done if one.first_s is not None]),
        "done_s": spread([one.done_s for one in done if one.done_s is not None]),
        "refused_share": len(refused) / max(1, len(phase.outcomes)),
        "refused_without_retry_after": len(refused) - len(waits),
        "retry_after_s": spread(waits),
        "reasons": sorted({one.reason for one in phase.outcomes if one.reason})[:5],
    }


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Nearest-rank percentiles; None of nothing."""
    if not values:
        return None
    ranked = sorted(values)
    at = lambda share: ranked[max(0, -(-len(ranked) * share // 100) - 1)]  # noqa: E731
    return {"p50": at(50), "p95": at(95), "max": ranked[-1], "count": len(ranked)}


async def with_client(
    url: str,
    key: str | None,
    order: dict[str, Any],
    end: float,
    work: Callable[[Client], Awaitable[Any]],
) -> Any:
    """``work`` with a client of the server at ``url``. Raises RuntimeError without httpx."""
    try:
        import httpx
    except ModuleNotFoundError:
        raise RuntimeError("httpx is not installed; run `pip install httpx`") from None
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
    timeout = httpx.Timeout(PATIENCE_S, connect=30.0)
    async with httpx.AsyncClient(
        base_url=url, headers=headers, limits=limits, timeout=timeout, trust_env=False
    ) as http:
        return await work(Client(http, order, end))

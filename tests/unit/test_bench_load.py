"""The load test's client against the server's own application with a worker that needs no model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed")
pytest.importorskip("httpx", reason="the load test's client is not installed")

import asyncio
import re

from runtime.bench.load import CROWDS, Plan, overload, parse, take
from runtime.bench.load_client import Client, Outcome, Phase, spread, summary, with_client
from runtime.bench.load_table import table
from runtime.serve.app import build_app
from runtime.serve.options import Bounds, ServeOptions
from tests.fake_worker import FakeWorker
from tests.http_thread import serving_app

PLACE = {"cores": 2, "cpu": "a processor", "gpu": None, "torch": "2", "commit": "abc"}


def plan(capacity: int = 3) -> Plan:
    return Plan(
        minutes=0.01, seconds=1.0, users=(1, 2), capacity=capacity, extra=4, order={"seconds": 1.0}
    )


@pytest.fixture
def worker() -> FakeWorker:
    return FakeWorker(chunk_s=0.05)


@pytest.fixture
def url(tmp_path: Path, worker: FakeWorker) -> Iterator[str]:
    bounds = Bounds(jobs=3)
    with serving_app(build_app(worker, ServeOptions(folder=tmp_path, bounds=bounds))) as address:
        yield address


def ask(url: str, work, seconds: float = 60.0):
    return asyncio.run(
        with_client(url, None, {"seconds": 1.0}, time.perf_counter() + seconds, work)
    )


def test_a_closed_loop_has_as_many_orders_open_as_users(url):
    phase = ask(url, lambda client: client.closed(3, 2.0))
    assert {one.kind for one in phase.outcomes} == {"done"}  # a fourth would be refused
    assert len(phase.outcomes) > 3
    for one in phase.outcomes:
        assert 0 < one.first_s < one.done_s
        assert one.frames == 21  # two chunks of a second: 9 + 12


def test_an_open_loop_does_not_wait_for_the_server(url):
    phase = ask(url, lambda client: client.open(40.0, 0.5, seed=1))
    assert len(phase.outcomes) == pytest.approx(20, abs=12)
    assert summary(phase)["refused"] > 0  # they came while three were open


def test_a_crowd_gets_what_the_server_has_and_refusals_say_when_to_come_back(url, worker):
    worker._chunk_s = 0.75  # nobody is done before everybody has asked
    found = ask(url, lambda client: overload(client, plan(), None))
    assert (found["accepted"], found["refused"], found["lost"]) == (3 * CROWDS, 4 * CROWDS, 0)
    assert found["refused_without_retry_after"] == 0
    assert found["retry_after_s"]["p50"] >= 1


def test_what_is_not_over_in_time_is_counted_as_unfinished(url):
    phase = ask(url, lambda client: client.crowd(2), seconds=0.06)
    assert [one.kind for one in phase.outcomes] == ["unfinished"] * 2


def test_a_failed_video_is_no_video_and_its_reason_is_kept(url):
    async def work(client: Client) -> Phase:
        client._prompts = ["fail"]
        return await client.crowd(1)

    told = summary(ask(url, work))
    assert (told["done"], told["failed"], told["fps"]) == (0, 1, 0)
    assert "No space left" in told["reasons"][0]


def test_every_phase_ends_up_in_the_table(url):
    found = ask(url, lambda client: take(client, plan(), None))
    settings = {"video_seconds": 1.0, "histories": 2, "expansions": 2}
    text = table({**found, "settings": settings, "environment": PLACE, "command": "x"})
    first = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert first[2:4] == ["1", "2"]  # users
    assert first[4] == "arrivals / min"
    assert re.search(r"\| accepted, and of these not finished \| [1-9]\d*, 0 \|", text)
    assert "2 cores of a processor, no GPU" in text


def test_percentiles_are_of_the_nearest_rank():
    assert spread([3.0, 1.0, 2.0]) == {"p50": 2.0, "p95": 3.0, "max": 3.0, "count": 3}
    assert spread(range(1, 101))["p95"] == 95
    assert spread([]) is None


def test_a_summary_counts_a_refusal_without_a_word():
    outcomes = (
        Outcome("done", 1.0, 2.0, 80),
        Outcome("refused"),
        Outcome("refused", retry_after_s=3.0),
    )
    told = summary(Phase(outcomes, 10.0))
    assert (told["fps"], told["videos_per_minute"]) == (8.0, 6.0)
    assert (told["refused"], told["refused_without_retry_after"]) == (2, 1)
    assert told["retry_after_s"]["max"] == 3.0


@pytest.mark.parametrize(
    "wrong", [["--minutes", "0"], ["--users", "0"], ["--capacity", "-1"]], ids=str
)
def test_a_load_of_nothing_is_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        parse(wrong)
    assert wrong[0] in capsys.readouterr().err

"""What Prometheus is told, from the worker's events alone."""

import json
import logging

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families

from runtime.serve.logs import JsonLines, about, log_to
from runtime.serve.metrics import Metrics


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def metrics(clock):
    return Metrics(clock)


def read(metrics):
    """Sample name, with its labels' values -> value."""
    return {
        " ".join([sample.name.removeprefix("stream_t1_"), *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def turn(job="a", index=0, stage_ms=None, rows=4, **more):
    return {
        "event": "turn",
        "job": job,
        "index": index,
        "candidates": [{}] * rows,
        "stage_ms": stage_ms or {},
        **more,
    }


def settled(job="a", index=0, frames=12, route="ema"):
    return {"event": "settled", "job": job, "index": index, "frames": frames, "route": route}


STATS = {"event": "stats", "queued": 3, "running": 3, "paused": 1, "blocks_used": 5, "blocks": 16,
         "batch_rows": 8, "batch_limit": 64}  # fmt: skip


def test_a_new_server_tells_zeros_and_not_nothing(metrics):
    told = read(metrics)
    assert (
        told["jobs queued"] == told["jobs_ended_total failed"] == told["routes_total append"] == 0
    )
    assert told["kv_blocks free"] == told["worker_up"] == told["frames_per_second"] == 0


def test_the_heartbeat_sets_queue_batch_and_blocks(metrics):
    metrics.seen({"event": "ready", "warm_ms": 1500.0})
    metrics.seen(STATS)
    told = read(metrics)
    assert [told[f"jobs {state}"] for state in ("queued", "running", "paused")] == [3, 2, 1]
    assert (told["kv_blocks used"], told["kv_blocks free"]) == (5, 11)
    assert (told["batch_rows"], told["worker_up"]) == (8, 1)
    assert told["batch_fill_ratio"] == 0.125
    assert told["worker_warm_up_seconds"] == 1.5


def test_stages_of_a_batch_are_counted_once_and_candidates_for_every_job(metrics):
    metrics.seen(turn("a", rows=4))
    metrics.seen(turn("b", rows=2, stage_ms={"denoise": 300.0, "decode": 20.0}))
    told = read(metrics)
    assert told["candidates_total"] == 6
    assert told["chunk_stage_seconds_count denoise"] == told["chunk_seconds_count"] == 1
    assert told["chunk_stage_seconds_sum decode"] == pytest.approx(0.02)
    assert told["chunk_seconds_sum"] == pytest.approx(0.32)
    assert told["chunk_stage_seconds_bucket 0.25 denoise"] == 0
    assert told["chunk_stage_seconds_bucket 0.5 denoise"] == 1


def test_the_first_chunk_counts_from_submission_and_settling_from_the_turn(metrics, clock):
    metrics.submitted("a")
    clock.now += 2
    metrics.seen(turn(index=0))
    clock.now += 1
    metrics.seen(turn(index=1))
    metrics.seen(settled(index=0))
    clock.now += 5
    metrics.seen(settled(index=1))
    told = read(metrics)
    assert told["first_chunk_seconds_count"] == 1 and told["first_chunk_seconds_sum"] == 3
    assert told["settle_delay_seconds_count"] == 2 and told["settle_delay_seconds_sum"] == 6


def test_frames_per_second_forget_what_is_old(metrics, clock):
    for _ in range(4):
        metrics.seen(settled(frames=12, route="discard"))
        clock.now += 1
    assert read(metrics)["frames_per_second"] == 4.8
    clock.now += 7.5
    assert read(metrics)["frames_per_second"] == 2.4
    clock.now += 10
    told = read(metrics)
    assert told["frames_per_second"] == 0 and told["frames_total"] == 48
    assert told["routes_total discard"] == told["chunks_settled_total"] == 4


def test_jobs_are_counted_by_how_they_ended(metrics):
    for job in "abcd":
        metrics.submitted(job)
    metrics.seen({"event": "done", "job": "a", "degraded": ["a reward was late"]})
    metrics.seen({"event": "done", "job": "b", "degraded": []})
    metrics.seen({"event": "failed", "job": "c", "reason": "x"})
    metrics.seen({"event": "cancelled", "job": "d"})
    told = read(metrics)
    assert [told[f"jobs_ended_total {how}"] for how in ("done", "failed", "cancelled")] == [2, 1, 1]
    assert told["jobs_degraded_total"] == 1 and not metrics._jobs


def test_reward_failures_snapshots_switches_and_refusals_are_counted(metrics):
    metrics.seen(turn(incidents=["late", "raised"]))
    for event in ("saved", "switched", "refused", "refused"):
        metrics.seen({"event": event, "job": "a"})
    told = read(metrics)
    assert told["reward_failures_total"] == 2 and told["refused_commands_total"] == 2
    assert told["snapshots_total"] == told["prompt_switches_total"] == 1


def test_a_dead_worker_leaves_no_running_jobs_behind(metrics):
    metrics.seen({"event": "ready", "warm_ms": 1.0})
    metrics.seen(STATS)
    metrics.submitted("a")
    metrics.submitted("b")
    metrics.seen({"event": "gone", "reason": "killed"})
    told = read(metrics)
    assert told["worker_up"] == told["jobs running"] == told["kv_blocks used"] == 0
    assert told["worker_deaths_total"] == 1 and told["jobs_ended_total failed"] == 2


def test_what_nobody_knows_is_ignored_and_two_servers_do_not_mix(metrics):
    metrics.seen({"event": "weather"})
    metrics.seen({})
    metrics.seen(settled("never submitted"))
    assert read(Metrics())["chunks_settled_total"] == 0


# Logs


def line(message="hello", level=logging.INFO, secrets=(), **more):
    record = logging.LogRecord("runtime.serve.x", level, "x.py", 1, message, (), None)
    for name, value in more.items():
        setattr(record, name, value)
    return json.loads(JsonLines("worker", secrets).format(record))


def test_a_line_names_its_request_and_job_and_forgets_them_after():
    with about(request="r1"), about(job="v1"):
        inner = line(facts={"chunks": 7, "score": float("nan"), "level": "x"})
    assert (inner["request"], inner["job"], inner["process"]) == ("r1", "v1", "worker")
    assert inner["chunks"] == 7 and inner["level"] == "info", "a fact does not hide a field"
    assert "score" not in inner
    assert "request" not in line() and "job" not in line()


def test_a_line_is_one_line_whatever_it_says():
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, 'a\nb "%s"', ("\u2028\x00",), None)
    text = JsonLines("server").format(record)
    assert len(text.splitlines()) == 1
    assert json.loads(text)["message"] == 'a\nb "\u2028\x00"'


def test_secrets_are_struck_out_wherever_they_stand():
    secret = 'pa"ss\\word'
    try:
        raise RuntimeError(f"wrong key {secret}")
    except RuntimeError as error:
        told = line(f"got {secret}!", secrets=[secret, ""], facts={"header": secret},
                    exc_info=(type(error), error, error.__traceback__))  # fmt: skip
    assert told["message"] == "got ***!" and told["header"] == "***"
    assert "wrong key ***" in told["error"] and secret not in json.dumps(told)


def test_a_secret_at_the_cut_of_a_long_text_leaves_no_half():
    told = line("x" + "s3cret99" + "y" * 8190, secrets=["s3cret99"])
    assert "cret99" not in told["message"] and told["message"].endswith("yyy")


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="--log-level: want one of debug, info"):
        log_to(level="loud")

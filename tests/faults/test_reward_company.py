"""Rewards that fail, are late or do not fit, seen from outside: traces, snapshots, other videos, time and memory."""

import json
import math
import threading

import pytest
import torch

from runtime.engine import Engine
from runtime.resuming import pack, unpack
from runtime.scenes import Scene
from runtime.trace import TraceWriter, read_trace
from runtime.types import Clip
from tests.faulty import (
    AT,
    CHUNKS,
    DEGRADE,
    JUDGES,
    PATIENCE_S,
    ROUTES,
    Faulty,
    at,
    broken,
    column,
    made,
)
from tests.tiny import tiny_engine, tiny_vae


def test_a_degraded_video_has_a_trace_without_numbers_that_json_lacks(tmp_path):
    parts = {role: Faulty(role, at(AT)) for role in JUDGES}
    engine = tiny_engine(CHUNKS, DEGRADE, decoder=tiny_vae(), **parts)
    with TraceWriter(tmp_path / "t.json") as trace:
        trace.begin("x", engine.settings, engine.fps, CHUNKS, {})
        for event in engine.stream("x", watch=trace):
            trace.settled(event)

    def refused(word: str) -> float:
        raise AssertionError(word)

    told = json.loads((tmp_path / "t.json").read_text(), parse_constant=refused)
    assert [c["short"] for c in told["chunks"][AT]["candidates"]] == [None] * 4
    assert math.isnan(read_trace(tmp_path / "t.json").chunks[AT].candidates[0].short)


def test_a_degraded_video_that_was_packed_goes_on_the_same():
    def making(engine: Engine, stops: bool) -> list[torch.Tensor]:
        frames: list[torch.Tensor] = []
        with engine.pool.lease() as lease:
            line = engine.begin(engine.recipe, (Scene(0, "x"),), lease)
            while not line.done:
                after = engine.turn(engine.ready([line]))
                (line,) = after.lines
                frames += [event.frames for _, event in after.settled]
                if stops and line.index == AT + 1:
                    packed = pack(line, engine.pool)
                    lease.close()
                    line = unpack(packed, engine, lease)
            return frames + [event.frames for event in engine.finish(line)]

    parts = {role: Faulty(role, at(AT)) for role in JUDGES}
    whole, resumed = (making(tiny_engine(CHUNKS, DEGRADE, **parts), s) for s in (False, True))
    assert len(whole) == CHUNKS
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


@pytest.mark.parametrize("role", ["image", "video"])
def test_one_videos_reward_fails_and_its_company_never_knows(role):
    """Prompts ride one batch; the reward cannot take the clips of one of them."""

    def trouble(clip: Clip, call: int) -> None:
        if clip.prompt == "bad" and clip.chunk == AT:
            raise ValueError("broken on purpose")

    def making(prompts: list[str]) -> tuple[dict[str, list], dict[str, str]]:
        # Forwards of two rows whatever the company, so that not even rounding depends on it.
        engine = broken(role, trouble, {**ROUTES, "run.prompts": 3, "run.batch_rows": 2})
        settled: dict[str, list] = {prompt: [] for prompt in prompts}
        fallen: dict[str, str] = {}
        with engine.pool.lease() as lease:
            lines = [
                engine.begin(engine.recipe, (Scene(0, prompt),), lease, number=number)
                for number, prompt in enumerate(prompts)
            ]
            while not lines[0].done:
                after = engine.turn(engine.ready(lines))
                for number, event in after.settled:
                    settled[prompts[number]].append(event.latents)
                fallen |= {video.prompt: str(error) for video, error in after.fallen}
                lines = list(after.lines)
            for line in lines:
                settled[line.video.prompt] += [event.latents for event in engine.finish(line)]
        engine.pool.check([])
        return settled, fallen

    with_it, fallen = making(["good", "bad", "fine"])
    assert fallen.keys() == {"bad"} and "ValueError: broken on purpose" in fallen["bad"]
    assert len(with_it["bad"]) <= AT
    alone, none = making(["good", "fine"])
    assert not none
    for prompt in ("good", "fine"):
        assert len(alone[prompt]) == CHUNKS
        assert all(torch.equal(a, b) for a, b in zip(with_it[prompt], alone[prompt], strict=True))


# Memory and time.


@pytest.mark.parametrize("role", ["image", "video"])
@pytest.mark.parametrize("most", [1, 3])
def test_rewards_that_do_not_fit_are_asked_in_parts_and_the_video_is_the_same(role, most):
    def trouble(clip: Clip, call: int) -> None:
        if len(clip.frames) > most:
            raise torch.OutOfMemoryError("simulated")

    latents, _ = made(tiny_engine(CHUNKS, ROUTES))
    again, told = made(broken(role, trouble, ROUTES))
    assert torch.equal(again, latents)
    assert all(record.incidents == () for record in told)


def test_a_late_reward_is_dropped_and_the_video_goes_on_with_it():
    gate, late = threading.Event(), threading.Event()

    def trouble(clip: Clip, call: int) -> None:
        if clip.chunk == AT:
            assert gate.wait(PATIENCE_S)
            late.set()

    engine = broken("image", trouble, {**DEGRADE, "reward.deadline_s": PATIENCE_S})
    guard = engine.guards["image"]
    records: list = []

    def watch(record) -> None:
        records.append(record)
        guard.deadline_s = 0.05 if record.index == AT - 1 else PATIENCE_S
        if record.index == AT:
            gate.set()
            assert late.wait(PATIENCE_S)

    latents = torch.cat([event.latents for event in engine.stream("x", watch=watch)])
    assert latents.isfinite().all() and len(records) == CHUNKS
    (incident,) = records[AT].incidents
    assert (incident.role, incident.kind) == ("image", "late")
    assert all(map(math.isnan, column(records[AT], "short")))
    assert all(record.incidents == () for record in records if record.index != AT)
    assert all(math.isfinite(short) for short in column(records[AT + 1], "short"))


def test_rewards_in_time_make_the_same_video_as_without_a_deadline():
    latents, _ = made(tiny_engine(CHUNKS, ROUTES))
    again, _ = made(tiny_engine(CHUNKS, {**ROUTES, "reward.deadline_s": PATIENCE_S}))
    assert torch.equal(latents, again)


def test_a_guess_without_a_video_reward_is_not_made():
    engine = broken("video", at(AT), {**DEGRADE, "run.speculate": True})
    latents, told = made(engine)
    again, _ = made(broken("video", at(AT)))
    assert torch.equal(latents, again) and engine.speculation.tried == CHUNKS - 2
    assert [i.role for i in told[AT].incidents] == ["video"]

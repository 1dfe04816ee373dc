"""Callers on one GPU: graphs are captured while others come and go, memory really runs out, and nobody else notices."""

import pytest
import torch

from runtime import AsyncEngine, JobCancelled, Limits, Request
from runtime.engine import Engine
from runtime.presets import preset

PROMPTS = ("a red circle moving right on a navy background", "a blue star moving up on a white background")  # fmt: skip
CHUNKS = 7
pytestmark = pytest.mark.gpu


def engine(**changes) -> Engine:
    settings = preset("sprites").with_changes(
        {"run.device": "cuda", "run.dtype": "bfloat16", "run.prompts": 2, **changes}
    )
    return Engine(settings)


def alone(prompt: str, **changes) -> torch.Tensor:
    return torch.cat([event.pixels for event in engine(**changes).stream(prompt)]).float()


def assert_same_video(got: list, want: torch.Tensor) -> None:
    """But for rounding, which candidates' company changes; a choice that tips over would show as another video."""
    frames = torch.cat([event.pixels for event in got]).float()
    assert (frames - want).abs().mean() < 2.0  # of 255


@pytest.mark.parametrize("joins_at", [0, 2])
def test_one_video_is_cancelled_while_the_others_batch_is_captured(joins_at):
    """The first chunks of two videos, of one, and of two again are three batch sizes: each is captured when it comes."""
    with AsyncEngine(engine()) as many:
        goes = None

        def watch(record):
            nonlocal goes
            if record.index == joins_at:
                goes = many.submit(Request(prompts=PROMPTS[1], backlog=99), cancel)

        def cancel(record):
            if record.index == 1:
                goes.cancel("enough")

        stays = many.submit(Request(prompts=PROMPTS[0], backlog=99), watch)
        got = list(stays)
        with pytest.raises(JobCancelled):
            list(goes)
        assert many.stats().blocks_used == 0
    assert_same_video(got, alone(PROMPTS[0]))


def test_memory_that_really_runs_out_halves_the_batch_and_nobody_fails():
    want = [alone(prompt) for prompt in PROMPTS]
    one = engine()
    with AsyncEngine(one, Limits(batch_rows=64)) as many:
        warm = many.submit(Request(prompts=PROMPTS[0], backlog=99))
        list(warm)
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        used = torch.cuda.memory_reserved()
        # What is reserved now and a little more: two videos' batches are larger than the one before.
        torch.cuda.set_per_process_memory_fraction(min(1.0, (used + (8 << 20)) / total))
        try:
            jobs = [many.submit(Request(prompts=prompt, backlog=99)) for prompt in PROMPTS]
            got = [list(job) for job in jobs]
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        assert [job.state for job in jobs] == ["done", "done"]
        assert many.stats().blocks_used == 0
    for frames, one_alone in zip(got, want, strict=True):
        assert_same_video(frames, one_alone)


def test_two_engines_on_one_gpu_make_their_videos_at_once_and_give_their_memory_back():
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    first, second = AsyncEngine(engine()), AsyncEngine(engine())
    jobs = [many.submit(Request(prompts=PROMPTS[0], backlog=99)) for many in (first, second)]
    a, b = (torch.cat([event.pixels for event in job]) for job in jobs)
    assert torch.equal(a, b)
    first.close()
    second.close()
    del first, second, jobs
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before < 8 << 20

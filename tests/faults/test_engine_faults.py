"""Whatever breaks, the pool is empty afterwards and the engine makes the next video as if nothing had happened."""

import gc
import math
from collections.abc import Callable

import pytest
import torch

from runtime.engine import Engine
from runtime.types import Clip
from tests.tiny import ByRow, Echo, Likes, motion, prettiness, tiny_engine

CHUNKS = 7
NAN, INF = math.nan, math.inf


class Broken(Exception):
    """What a part raises here."""


class Fuse:
    """Lets a call through until it is armed for the chunk at hand."""

    def __init__(self) -> None:
        self.at: int | None = None
        self.chunk = 0

    def note(self, record) -> None:
        self.chunk = record.index + 1

    def check(self) -> None:
        if self.at == self.chunk:
            raise Broken(f"at chunk {self.chunk}")


def fused(fuse: Fuse, call: Callable) -> Callable:
    def checked(*args):
        fuse.check()
        return call(*args)

    return checked


def break_dit(engine: Engine, fuse: Fuse, monkeypatch) -> None:
    monkeypatch.setattr(engine.denoiser.dit, "forward", fused(fuse, engine.denoiser.dit.forward))


def break_clean_pass(engine: Engine, fuse: Fuse, monkeypatch) -> None:
    monkeypatch.setattr(engine.denoiser.dit, "remember", fused(fuse, engine.denoiser.dit.remember))


def break_decoder(engine: Engine, fuse: Fuse, monkeypatch) -> None:
    decoder = engine.decoding.decoder
    monkeypatch.setattr(decoder, "decode", fused(fuse, decoder.decode))


def break_image_reward(engine: Engine, fuse: Fuse, monkeypatch) -> None:
    monkeypatch.setattr(engine.parts.image, "score", fused(fuse, engine.parts.image.score))


def break_video_reward(engine: Engine, fuse: Fuse, monkeypatch) -> None:
    monkeypatch.setattr(engine.parts.video, "score", fused(fuse, engine.parts.video.score))


def break_noise(engine: Engine, fuse: Fuse, monkeypatch) -> None:
    for verb in ("draw", "propagate", "renoise"):
        call = getattr(engine.parts.noise, verb)
        monkeypatch.setattr(engine.parts.noise, verb, fused(fuse, call))


BREAKS = [
    break_dit,
    break_clean_pass,
    break_decoder,
    break_image_reward,
    break_video_reward,
    break_noise,
]


def all_latents(engine: Engine, watch=None) -> torch.Tensor:
    return torch.cat([event.latents for event in engine.stream("x", watch=watch)])


@pytest.mark.parametrize("chunk", [0, 1, 5])
@pytest.mark.parametrize("schedule", ["survivors", "released"])
@pytest.mark.parametrize("breaks", BREAKS)
def test_a_part_that_raises_leaves_nothing_held(breaks, schedule, chunk, monkeypatch):
    engine, fuse = tiny_engine(CHUNKS, {"run.schedule": schedule}), Fuse()
    want = all_latents(engine) if chunk == 5 else None
    breaks(engine, fuse, monkeypatch)
    fuse.at = chunk
    # A reward's error ends the video as one sentence, every other part's as it is.
    with pytest.raises((Broken, RuntimeError), match=f"at chunk {chunk}"):
        all_latents(engine, fuse.note)
    engine.pool.check([])
    fuse.at, fuse.chunk = None, 0
    if want is not None:
        assert torch.equal(all_latents(engine), want)


@pytest.mark.parametrize("chunk", [0, 3, CHUNKS - 1])
def test_a_watcher_that_raises_leaves_nothing_held(chunk):
    engine = tiny_engine(CHUNKS)

    def watch(record) -> None:
        if record.index == chunk:
            raise Broken

    with pytest.raises(Broken):
        all_latents(engine, watch)
    engine.pool.check([])


def test_a_final_rating_that_raises_leaves_nothing_held():
    class Raises:
        horizon = 1

        def score(self, clip: Clip) -> torch.Tensor:
            raise Broken

    engine = tiny_engine(CHUNKS, final=Raises())
    with pytest.raises(
        RuntimeError, match="none of the 2 videos has a final score: .* Broken; mend"
    ):
        all_latents(engine)
    engine.pool.check([])


def test_a_caller_that_closes_early_leaves_nothing_held():
    engine = tiny_engine(CHUNKS, {"search.policy": "single"})
    events = engine.stream("x")
    next(events), next(events)
    assert engine.pool.used == 2
    events.close()
    engine.pool.check([])


def test_a_caller_that_walks_away_leaves_nothing_held():
    engine = tiny_engine(CHUNKS, {"search.policy": "single"})
    for event in engine.stream("x"):
        if event.index == 2:
            break
    gc.collect()
    engine.pool.check([])


def test_a_caller_that_raises_leaves_nothing_held():
    engine = tiny_engine(CHUNKS, {"search.policy": "single"})

    def consume() -> None:
        for event in engine.stream("x"):
            if event.index == 2:
                raise Broken

    with pytest.raises(Broken):
        consume()
    gc.collect()
    engine.pool.check([])


def test_an_interrupt_thrown_into_the_stream_leaves_nothing_held():
    engine = tiny_engine(CHUNKS, {"search.policy": "single"})
    events = engine.stream("x")
    next(events)
    with pytest.raises(KeyboardInterrupt):
        events.throw(KeyboardInterrupt())
    engine.pool.check([])


def test_a_stream_that_never_began_holds_nothing():
    engine = tiny_engine(CHUNKS)
    engine.stream("x")
    engine.pool.check([])
    assert all_latents(engine).isfinite().all()


def test_one_engine_makes_one_video_at_a_time():
    engine = tiny_engine(CHUNKS, {"search.policy": "single"})
    first, early = engine.stream("x"), engine.stream("y")
    next(first)
    with pytest.raises(
        RuntimeError, match="already generating a video; finish or close it, or build"
    ):
        engine.stream("y")
    with pytest.raises(RuntimeError, match="already generating a video"):
        next(early)  # asked for before the first began, begun after
    assert len(list(first)) == CHUNKS - 1
    assert len(list(engine.stream("y"))) == CHUNKS


# Rewards that cannot judge.


def sometimes(bad: float, judge, rows: set[int]):
    """``judge``, but ``bad`` for some rows of every batch."""

    class Sometimes(Likes):
        def score(self, clip: Clip) -> torch.Tensor:
            scores = super().score(clip)
            for row in rows & set(range(len(scores))):
                scores[row] = bad
            return scores

    return Sometimes(judge)


@pytest.mark.parametrize("bad", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("fidelity", ["paper", "released"])
def test_a_candidate_that_cannot_be_judged_is_never_selected(fidelity, kind, bad):
    rows = {0, 3}
    judge = prettiness if kind == "image" else motion
    kept = set()
    engine = tiny_engine(CHUNKS, {"fidelity": fidelity}, **{kind: sometimes(bad, judge, rows)})
    events = list(engine.stream("x", watch=lambda record: kept.update(record.kept)))
    assert kept == {1, 2}
    assert all(math.isfinite(event.scores.fused) for event in events)


@pytest.mark.parametrize("bad", [NAN, INF], ids=str)
@pytest.mark.parametrize("kind", ["image", "video"])
def test_rewards_that_can_judge_nothing_are_an_error(kind, bad):
    engine = tiny_engine(CHUNKS, **{kind: ByRow(lambda chunk, rows: [bad] * rows)})
    with pytest.raises(RuntimeError, match="none of the 4 candidates has a finite score; a reward"):
        all_latents(engine)
    engine.pool.check([])


def test_a_pool_that_shrinks_to_the_judgeable_goes_on():
    """Three of four candidates are refused at one chunk: one history is left, and grows back to two."""
    scores = ByRow(lambda chunk, rows: [0.5] + [NAN if chunk == 3 else 0.1] * (rows - 1))
    survivors = []
    engine = tiny_engine(CHUNKS, video=scores)
    assert (
        len(list(engine.stream("x", watch=lambda r: survivors.append(len(r.survivors))))) == CHUNKS
    )
    assert survivors == [2, 2, 2, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("scores", "winner"), [([NAN, 0.0], 1), ([-INF, NAN], 0), ([NAN, NAN], 0), ([INF, -3.0], 1)]
)
def test_a_final_rating_that_cannot_judge_falls_to_the_next(scores, winner):
    records = []
    apart = ByRow(lambda chunk, rows: [float(row % 2 == 0) for row in range(rows)])  # never meet
    still = ByRow(lambda chunk, rows: [0.0] * rows)
    final = ByRow(lambda chunk, rows: scores)
    engine = tiny_engine(3, image=still, video=apart, final=final)
    *_, last = engine.stream("x", watch=records.append)
    chosen = records[-1].candidates[records[-1].kept[winner]]
    assert torch.equal(last.latents, chosen.latents)


@pytest.mark.parametrize("kind", ["image", "video", "final"])
def test_a_reward_of_the_wrong_shape_is_named_and_nothing_is_held(kind):
    class PerFrame:
        horizon = 1

        def score(self, clip: Clip) -> torch.Tensor:
            return torch.zeros(clip.frames.shape[:2])

    engine = tiny_engine(CHUNKS, **{kind: PerFrame()})
    with pytest.raises(
        RuntimeError, match=rf"{kind} reward: want one score per clip \[\d\], got \["
    ):
        all_latents(engine)
    engine.pool.check([])


def test_a_decoder_that_makes_nan_frames_is_an_error_and_not_a_video():
    class Blank(Echo):
        def decode(self, latents, state):
            frames, state = super().decode(latents, state)
            return frames * NAN, state

    engine = tiny_engine(CHUNKS, decoder=Blank())
    with pytest.raises(RuntimeError, match="has a finite score"):
        all_latents(engine)
    engine.pool.check([])

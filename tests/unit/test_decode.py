"""Streamed decoding shows the rewards what the viewer will see; cold decoding shows them what the released code did."""

import pytest
import torch

from runtime.decode import Decoding
from runtime.types import Branch, Trajectory
from tests.tiny import CHANNELS, SIDE, Echo, generator_of, tiny_vae

CHUNKS, ROWS = 5, 3
THREE = [3]  # chunks of the window, of one video
EVERY = [slice(None)]


def latents(rows: int = ROWS, chunks: int = CHUNKS) -> torch.Tensor:
    """[chunks, B, F, C, h, w]"""
    return torch.randn(chunks, rows, 3, CHANNELS, SIDE, SIDE, generator=generator_of(0))


def grown(decoding: Decoding, table: torch.Tensor) -> list[Trajectory]:
    """One history per row, all chunks of the table shown."""
    pool = [Trajectory()] * table.shape[1]
    for chunk in table:
        branches = branched(pool)
        newest = decoding.newest(branches, chunk)
        shown = decoding.shown(branches, chunk, newest, range(len(pool)))
        past = 2
        pool = [
            Trajectory(
                decoder=one.state,
                scoring=one.scoring,
                latents=(*parent.latents, row)[-past:],
                frames=(*parent.frames, one.seen)[-past:],
            )
            for parent, row, one in zip(pool, chunk, shown, strict=True)
        ]
    return pool


def branched(pool: list[Trajectory]) -> list[Branch]:
    return [Branch(parent, rank, 0, rank, 0) for rank, parent in enumerate(pool)]


@pytest.fixture(params=["vae", "echo"])
def decoder(request: pytest.FixtureRequest):
    return tiny_vae() if request.param == "vae" else Echo()


@pytest.fixture
def table() -> torch.Tensor:
    return latents()


def whole(decoder, table: torch.Tensor, row: int) -> list[torch.Tensor]:
    """Frames of each chunk of one row, decoded by itself from the start."""
    shown, state = [], None
    for chunk in table[:, row : row + 1]:
        frames, state = decoder.decode(chunk, state)
        shown.append(frames[0])
    return shown


@pytest.mark.parametrize("batch_rows", [0, 1, 2])
def test_streamed_frames_are_the_frames_of_the_video(decoder, table, batch_rows):
    decoding = Decoding(decoder, cold=False, batch_rows=batch_rows)
    branches = branched(grown(decoding, table[:-1]))
    newest = decoding.newest(branches, table[-1])
    window = decoding.windows(branches, EVERY, table[-1], newest, THREE)[0].whole()
    for row in range(ROWS):
        want = whole(decoder, table, row)
        assert torch.allclose(newest.frames[row], want[-1], atol=1e-6)
        assert torch.allclose(window[row], torch.cat(want[-3:]), atol=1e-6)


@pytest.mark.parametrize("batch_rows", [0, 1, 2])
def test_cold_frames_begin_from_an_empty_state(decoder, table, batch_rows):
    decoding = Decoding(decoder, cold=True, batch_rows=batch_rows)
    branches = branched(grown(decoding, table[:-1]))
    newest = decoding.newest(branches, table[-1])
    window = decoding.windows(branches, EVERY, table[-1], newest, THREE)[0].whole()
    for row in range(ROWS):
        assert torch.allclose(newest.frames[row], whole(decoder, table[-1:], row)[0], atol=1e-6)
        assert torch.allclose(window[row], torch.cat(whole(decoder, table[-3:], row)), atol=1e-6)


@pytest.mark.parametrize("cold", [False, True])
def test_what_is_shown_does_not_depend_on_what_the_rewards_saw(decoder, table, cold):
    decoding = Decoding(decoder, cold=cold)
    branches = branched(grown(decoding, table[:-1]))
    newest = decoding.newest(branches, table[-1])
    shown = decoding.shown(branches, table[-1], newest, [2, 0])
    for row, got in zip([2, 0], shown, strict=True):
        assert torch.allclose(got.frames, whole(decoder, table, row)[-1], atol=1e-6)
    assert len(shown) == 2


def test_an_image_reward_sees_12_frames_of_a_chunk_in_the_paper_and_9_when_released(table):
    for cold, first, later in ((False, 9, 12), (True, 9, 9)):
        decoding = Decoding(tiny_vae(), cold=cold)
        assert decoding.newest(branched([Trajectory()] * ROWS), table[0]).frames.shape[1] == first
        branches = branched(grown(decoding, table[:1]))
        newest = decoding.newest(branches, table[1])
        assert newest.frames.shape[1] == later
        assert decoding.windows(branches, EVERY, table[1], newest, THREE)[0].frames == 21


def test_a_cold_window_is_the_video_while_it_begins_with_it(table):
    """Bit for bit up to the window's length, and not after."""
    vae = tiny_vae()
    for chunks, same in ((3, True), (4, False)):
        cold, warm = (
            decoding.windows(
                branches,
                EVERY,
                table[chunks - 1],
                decoding.newest(branches, table[chunks - 1]),
                THREE,
            )[0].whole()
            for decoding in (Decoding(vae, cold=kind) for kind in (True, False))
            for branches in [branched(grown(decoding, table[: chunks - 1]))]
        )
        if same:
            assert torch.equal(cold, warm)
        else:
            assert cold.shape[1] == warm.shape[1] - 3  # its first latent is one frame again
            assert (cold[:, -9:] - warm[:, -9:]).abs().max() > 1e-6


def test_a_window_of_one_chunk_is_the_newest(decoder, table):
    decoding = Decoding(decoder, cold=False)
    branches = branched([Trajectory()] * ROWS)
    newest = decoding.newest(branches, table[0])
    assert torch.equal(
        decoding.windows(branches, EVERY, table[0], newest, [1])[0].whole(), newest.frames
    )
    cold = Decoding(decoder, cold=True)
    window = cold.windows(branches, EVERY, table[0], cold.newest(branches, table[0]), [1])[
        0
    ].whole()
    assert torch.equal(window, newest.frames)


def test_siblings_stream_on_from_one_untouched_state(decoder, table):
    decoding = Decoding(decoder, cold=False)
    (parent, *_) = grown(decoding, table[:2])
    siblings = branched([parent, parent, parent])
    together = decoding.newest(siblings, table[2]).frames
    for row in range(ROWS):
        alone = decoding.newest(siblings[:1], table[2, row : row + 1]).frames[0]
        assert torch.allclose(together[row], alone, atol=1e-6)
    decoding.shown(siblings, table[2], decoding.newest(siblings, table[2]), [0, 1])
    again = decoding.newest(siblings, table[2]).frames
    assert torch.equal(again, together)


class Half(Echo):
    """A cheaper decoder: other frames, a state of another kind."""

    def decode(self, latents, state):
        frames, after = super().decode(0.5 * latents, None if state is None else state["echo"])
        return frames, {"echo": after}

    def rows(self, state, rows):
        return {"echo": super().rows(state["echo"], rows)}

    def stack(self, states):
        if states[0] is None:
            return None
        return {"echo": super().stack([state["echo"] for state in states])}


def test_rewards_may_see_another_decoder_and_the_viewer_never_does(table):
    """Both go on from states of their own, whatever was kept before."""
    full, cheap = Echo(), Half()
    decoding = Decoding(full, cold=False, scoring=cheap)
    pool = grown(decoding, table[:-1])
    branches = branched([pool[2], pool[0], pool[1]])
    latents = table[-1][[2, 0, 1]]
    newest = decoding.newest(branches, latents)
    window = decoding.windows(branches, EVERY, latents, newest, THREE)[0].whole()
    shown = decoding.shown(branches, latents, newest, [1, 0])
    for row, source in enumerate((2, 0, 1)):
        want = whole(cheap, table, source)
        assert torch.equal(newest.frames[row], want[-1])
        assert torch.equal(window[row], torch.cat(want[-3:]))
    for one, source in zip(shown, (0, 2), strict=True):
        assert torch.equal(one.frames, whole(full, table, source)[-1])
        assert torch.equal(one.seen, whole(cheap, table, source)[-1])


def test_a_preview_is_the_first_frame_of_a_video_that_begins_there(decoder, table):
    decoding = Decoding(decoder, cold=False, batch_rows=2)
    frames = decoding.preview(table[0])
    assert frames.shape[:2] == (ROWS, 1)
    for row in range(ROWS):
        want, _ = decoder.decode(table[0, row : row + 1, -1:], None)
        assert torch.allclose(frames[row], want[0], atol=1e-6)

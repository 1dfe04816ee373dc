"""Siblings share what is shareable: frames that are the same tensors, pictures looked at once, beginnings read once."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from runtime.backends import captured
from runtime.rewards import load_reward
from runtime.rewards.qwen2vl import Qwen2VL
from runtime.rewards.qwen2vl_judge import Judge
from runtime.rewards.qwen2vl_kin import Kin, Stretch, answer_kin
from runtime.rewards.qwen2vl_vision import PATCH_VALUES
from runtime.rewards.qwen2vl_words import Filler
from runtime.rewards.videoalign import KIND, VideoAlign, sampled_frames
from runtime.score import Scorer, clip_for
from runtime.settings import MemorySettings, RewardSettings
from runtime.types import Clip
from runtime.window import Window
from tests.reward_folder import write_folder
from tests.stories import FPS, PLACE, STORIES, moved, story
from tests.tiny import tiny_engine, tiny_vae


@pytest.fixture(scope="module")
def reward(tmp_path_factory) -> VideoAlign:
    folder = write_folder(tmp_path_factory.mktemp("weights"), "videoalign")
    return load_reward("videoalign", "cpu", str(folder))


@pytest.mark.parametrize(
    ("pictures", "stretches"),
    [
        (["abc", "abd"], [("ab", [0]), ("c d", [0, 0])]),
        (["abc", "dec"], [("abc dec", [0, 0])]),  # what comes later does not make it shareable
        (["abc", "abc"], [("abc abc", [0, 0])]),
        (["abc"], [("abc", [0])]),
        (["abx", "aby", "cdz", "cdw"], [("ab cd", [0, 0]), ("x y z w", [0, 0, 1, 1])]),
        (["abx", "cdz", "aby", "cdw"], [("ab cd", [0, 0]), ("x z y w", [0, 1, 0, 1])]),
        (["abx", "abx", "abz"], [("ab", [0]), ("x x z", [0, 0, 0])]),
        (["abcx", "abcy", "abdz", "ae_w"], [("a", [0]), ("b e", [0, 0]), ("c d _", [0, 0, 1]), ("x y z w", [0, 0, 1, 2])]),
        (["abx", "cby", "cbz"], [("ab cb", [0, 0]), ("x y z", [0, 1, 1])]),
    ],
    ids=str,
)  # fmt: skip
def test_rows_are_read_together_until_they_part(pictures, stretches):
    numbers = {letter: index for index, letter in enumerate(dict.fromkeys("".join(pictures)))}

    def spelt(words):
        return tuple(tuple(numbers[letter] for letter in word) for word in words)

    want = tuple(Stretch(spelt(words.split()), tuple(parents)) for words, parents in stretches)
    assert Kin(spelt(pictures)).stretches() == want


def test_a_picture_is_shared_if_all_its_frames_are():
    kin = Kin.of([(0, 0, 0, 0, 0, 0), (0, 0, 0, 1, 1, 1), (2, 0, 0, 0, 2, 2)], 2)
    assert kin.pictures == ((0, 1, 2), (0, 3, 4), (5, 1, 6))
    assert kin.seats == ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 0), (2, 2))
    assert kin.shares and not Kin.of([(0, 0), (1, 1)], 2).shares


@pytest.mark.parametrize("rows", STORIES.values(), ids=STORIES)
def test_shared_scores_are_the_scores_of_clips_that_know_nothing_of_each_other(reward, rows):
    window = story(rows)
    clip = clip_for(reward, window, PLACE)
    plain = reward.detail(Clip(window.whole(), PLACE.prompt, FPS, 4))
    shared = reward.detail(clip)
    assert torch.allclose(shared, plain, atol=1e-5, rtol=1e-5)
    assert torch.equal(shared.sum(1).argsort(), plain.sum(1).argsort())
    assert plain.std(0).min() > 1e-4


@pytest.mark.parametrize("rows", [0, 1, 2, 3])
def test_shared_scores_do_not_depend_on_how_the_batch_is_cut(reward, rows):
    window = story(STORIES["three generations"])
    clip = clip_for(reward, window, PLACE)
    cut = VideoAlign(reward.judge, rows).detail(clip)
    assert torch.allclose(cut, reward.detail(clip), atol=1e-5, rtol=1e-5)


def test_a_whole_clip_that_knows_its_twins_scores_as_the_picked_one(reward):
    window = story(STORIES["three generations"])
    twins = window.twins(range(window.frames))
    whole = Clip(window.whole(), PLACE.prompt, FPS, 4, twins)
    assert torch.equal(reward.detail(whole), reward.detail(clip_for(reward, window, PLACE)))


def test_each_different_picture_is_looked_at_once_and_each_common_beginning_read_once(
    reward, monkeypatch
):
    looked, read = [], Counter()
    net = reward.judge.net
    look, project = net.visual.forward, net.model.layers[0].mlp.forward
    monkeypatch.setattr(
        net.visual, "forward", lambda x, grid: looked.append(len(x)) or look(x, grid)
    )
    monkeypatch.setattr(
        net.model.layers[0].mlp, "forward", lambda x: read.update([tuple(x.shape[:2])]) or project(x)
    )  # fmt: skip
    window = story(["abcd", "abcd", "abce", "abce"], frames=16)  # 80 frames: 10 seen, 5 pictures
    words = reward.judge.words(PLACE.prompt)
    reward.score(clip_for(reward, window, PLACE))
    # Frames 0 9 | 18 26 | 35 44 | 53 61 | 70 79: three pictures of all, one of each pair, one of each row.
    assert sampled_frames(80, FPS) == (0, 9, 18, 26, 35, 44, 53, 61, 70, 79)
    assert sum(looked) == 3 + 2 + 4
    before, after = len(words.before), len(words.after)
    assert read == Counter([(1, before + 3 * 6), (2, 6), (4, 6 + after)])


@pytest.mark.parametrize("rows", STORIES.values(), ids=STORIES)
def test_the_embedded_reward_looks_at_each_frame_once(rows, monkeypatch):
    video = load_reward("sprites-video")
    window, looked = story(rows, size=(96, 96), frames=6), []
    want = video.detail(Clip(window.whole(), PLACE.prompt, FPS, 4))
    see = video.net.see
    monkeypatch.setattr(video.net, "see", lambda frames: looked.append(len(frames)) or see(frames))
    clip = clip_for(video, window, PLACE)
    assert clip.picked and torch.allclose(video.detail(clip), want, atol=1e-5)
    chunks = len({(at, letter) for row in rows for at, letter in enumerate(row)}) + 4
    assert looked == [3 * chunks]
    whole = Clip(window.whole(), PLACE.prompt, FPS, 4, window.twins(range(window.frames)))
    assert torch.equal(video.detail(whole), video.detail(clip))


class Graphs:
    """A network that only has what ``Network`` asks for, as exported graphs do."""

    def __init__(self, net: Qwen2VL) -> None:
        self.look, self.embed, self.read = net.look, net.embed, net.read


def test_a_recorded_network_shares_as_well(reward, monkeypatch):
    """What ``reward.backend=captured`` puts in the network's place, rehearsed on the CPU."""
    window = story(STORIES["three generations"])
    clip = clip_for(reward, window, PLACE)
    want, reads = reward.detail(clip), []
    inner = reward.judge.net
    monkeypatch.setattr(inner, "read", lambda *asked: reads.append(asked))
    monkeypatch.setattr(reward.judge, "net", captured(inner, torch.device("cpu"), "rehearsal"))
    assert torch.allclose(reward.detail(clip), want, atol=1e-5, rtol=1e-5)
    assert not reads


@torch.no_grad()
def test_a_network_that_cannot_branch_looks_once_and_reads_every_row(reward, monkeypatch):
    clip = clip_for(reward, story(STORIES["two pairs that part late"]), PLACE)
    asked = reward.prepare(clip)
    assert asked.kin is not None and len(asked.patches) == len(asked.kin.seats) < 12
    graphs = Graphs(reward.judge.net)
    got = answer_kin(graphs, asked.patches[:, 0], asked.grid, asked.words, asked.kin, 3)
    assert torch.allclose(got, reward.judge.ask(asked, 0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("twins", [((0,) * 36,), ((0,) * 4,) * 4, ((0,) * 36,) * 3 + ((0,) * 35,)])
def test_twins_that_do_not_fit_the_frames_are_told(reward, twins):
    frames = story(STORIES["one parent"]).whole()[:, :36]
    with pytest.raises(ValueError, match=r"clip.twins: want one for every frame, \[4, 36\]"):
        reward.score(Clip(frames, "", FPS, 0, twins))


def test_picked_frames_that_make_no_pairs_are_told(reward):
    clip = replace(
        clip_for(reward, story(["a"]), PLACE), frames=torch.rand(1, 3, 3, 60, 90), twins=()
    )
    with pytest.raises(ValueError, match="want picked frames in pairs, got 3"):
        reward.score(clip)


class Forgetful:
    """A video reward that is not told what clips share."""

    def __init__(self, reward: VideoAlign) -> None:
        self.reward, self.horizon, self.seen = reward, reward.horizon, []

    def score(self, clip: Clip) -> torch.Tensor:
        self.seen.append(clip)
        return self.reward.score(replace(clip, twins=()))


def test_a_search_decides_the_same_with_and_without_sharing(reward, monkeypatch):
    """Chunks of a real decoder; the window fills up, histories branch and die out."""
    asked = []
    ask = reward.judge.ask
    monkeypatch.setattr(reward.judge, "ask", lambda q, rows: asked.append(q.kin) or ask(q, rows))
    changes = {"reward.window_chunks": 4}
    decisions = []
    for video in (reward, Forgetful(reward)):
        records = []
        engine = tiny_engine(7, changes, decoder=tiny_vae(), video=video)
        for _ in engine.stream("a red circle", watch=records.append):
            pass
        decisions.append([(r.kept, [c.route for c in r.candidates]) for r in records])
        longs = [[c.scores.long for c in r.candidates] for r in records]
        if video is reward:
            want = longs
    assert decisions[0] == decisions[1]
    assert all(g == pytest.approx(w, abs=1e-5) for g, w in zip(longs, want, strict=True))
    shared = [kin for kin in asked if kin is not None]
    assert len(shared) >= 6  # all but the first chunk
    assert any(len(kin.stretches()) == 3 for kin in shared)  # cousins


def test_clips_that_share_nothing_cost_as_much_as_each_by_itself():
    judge = full_size()
    reward = VideoAlign(judge)
    twins = tuple((row,) * 117 for row in range(4))
    assert reward.flops_together(twins, 480, 832, FPS) == 4 * reward.flops(117, 480, 832, FPS)


def full_size() -> Judge:
    with torch.device("meta"):
        net = Qwen2VL(KIND.config, KIND.head(1536, {})).to(torch.bfloat16)
    return Judge(KIND, net, Filler(KIND.filler_tokens, 3, 151_660), KIND.pixels)


def window_twins(parents) -> tuple[tuple[int, ...], ...]:
    """Of two pairs of siblings: who holds each of 9 + 9 * 12 frames, by the names of the parents' nine chunks."""
    names = [parents[0], parents[0], parents[1], parents[1]]
    rows = []
    for row, mine in enumerate(names):
        owners = [
            next(r for r, other in enumerate(names) if other[i] == c) for i, c in enumerate(mine)
        ]
        lengths = [9, *[12] * 8]
        past = [owner for owner, length in zip(owners, lengths, strict=True) for _ in range(length)]
        rows.append((*past, *[row] * 12))
    return tuple(rows)


FULL = {  # four candidates at 832x480 whose window of ten chunks is full: chunks that each pair of siblings shares
    "strangers": ([range(9), range(10, 19)], 16, 7_650),
    "cousins for a chunk": ([range(9), (*range(8), 9)], 11, 6_299),
}


@pytest.mark.parametrize("case", FULL)
@torch.no_grad()
def test_at_full_size_shared_work_is_counted_right(case):
    """Against torch's counter, which counts what a causal mask hides and the queries that stand in for earlier tokens."""
    parents, pictures, tokens = FULL[case]
    judge = full_size()
    reward = VideoAlign(judge)
    twins = window_twins(parents)
    seen = sampled_frames(117, FPS)
    kin = Kin.of([[row[frame] for frame in seen] for row in twins], 2)
    assert len(kin.seats) == pictures
    patches = torch.empty(pictures, 1008, PATCH_VALUES, dtype=torch.bfloat16, device="meta")
    words = judge.words("")
    with FlopCounterMode(display=False) as counter:
        answer_kin(judge.net, patches, (24, 42), words, kin, 4)
    ids, hidden, read, past = judge.script.ids(""), 0, 0, 0
    stretches = kin.stretches()
    for stretch in stretches:
        fresh = len(stretch.pictures[0]) * 252
        fresh += len(ids.before) if stretch is stretches[0] else 0
        fresh += len(ids.after) if stretch is stretches[-1] else 0
        used = fresh * past + fresh * (fresh + 1) // 2
        past += fresh
        hidden += 27 * len(stretch.pictures) * 4 * 1536 * (past**2 - used)
        read += len(stretch.pictures) * fresh
    assert past == 2714 and read == tokens
    behind, head = 4 * 4 * 1536 * sum(ids.back), 4 * 3 * 2 * 1536
    want = reward.flops_together(twins, 480, 832, FPS)
    assert counter.get_total_flops() == want + hidden + behind + head


@pytest.mark.gpu
def test_sharing_never_waits_for_the_gpu_and_scores_as_the_plain_way(tmp_path):
    write_folder(tmp_path, "videoalign")
    reward = load_reward("videoalign", "cuda", str(tmp_path), torch.bfloat16)
    window = story(STORIES["three generations"])
    there = Window(window.newest.cuda(), moved(window.past, "cuda"))
    room = Scorer(None, reward, RewardSettings(), MemorySettings(), False)
    room.rate_videos([there], [PLACE])  # warm: the prompt's ids and the tables go up
    torch.cuda.set_sync_debug_mode("error")
    try:
        shared = room.rate_videos([there], [PLACE])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert reward.prepare(clip_for(reward, there, PLACE)).kin is not None
    plain = reward.score(Clip(there.whole(), PLACE.prompt, FPS, 4))
    exact = load_reward("videoalign", "cpu", str(tmp_path)).score(
        Clip(window.whole(), PLACE.prompt, FPS, 4)
    )
    off, plain_off = ((x.cpu() - exact).abs().max() for x in (shared, plain))
    assert off <= max(2 * plain_off, 0.01)


@pytest.mark.gpu
def test_a_captured_forward_of_kin_scores_new_patches(tmp_path):
    write_folder(tmp_path, "videoalign")
    reward = load_reward("videoalign", "cuda", str(tmp_path), torch.bfloat16)
    ask, other = (
        reward.prepare(clip_for(reward, Window(newest.cuda(), moved(window.past, "cuda")), PLACE))
        for window in [story(STORIES["two pairs that part late"])]
        for newest in (window.newest, window.newest.flip(0))
    )
    reward.forward(ask)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        scores = reward.forward(ask)
    ask.patches.copy_(other.patches)
    graph.replay()
    assert torch.allclose(scores, reward.forward(other), atol=1e-2)

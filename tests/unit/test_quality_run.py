"""Plans become batches, batches become rows, and nothing is made twice."""

from dataclasses import replace

import pytest
import torch

from runtime.bench.quality import run
from runtime.bench.quality.plan import Plan, jobs, same_settings, under_all_names, weight
from runtime.bench.quality.row import RIGHT
from runtime.bench.quality.run import Maker, to_bytes
from runtime.bench.quality.store import load_frames
from runtime.bench.quality.worlds import Wishes
from tests.quality_world import MeanWorld
from tests.tiny import tiny_engine

CHUNKS = 3


def plan_of(folder, methods=("single", "stream-t1"), prompts=3, **more):
    given = {"seconds": (3.0 * CHUNKS,), "seeds": (42, 1_000_042), "batch": 2, **more}
    texts = tuple(MeanWorld().texts(prompts))
    return Plan("tests.quality_world:MeanWorld", "mean", Wishes(folder), texts, methods, **given)


def maker_of(plan):
    return Maker(plan, MeanWorld(), tiny_engine(CHUNKS).parts)


def test_a_job_is_one_batch_and_methods_take_turns(tmp_path):
    work = [(job.seed, job.prompts, job.method) for job in jobs(plan_of(tmp_path), ())]
    assert work[:4] == [
        (42, (0, 1), "single"),
        (42, (0, 1), "stream-t1"),
        (42, (2,), "single"),
        (42, (2,), "stream-t1"),
    ]
    assert len(work) == 8


def test_on_a_gpu_a_method_stays(tmp_path):
    plan = plan_of(tmp_path, changes={"run.device": "cuda"})
    assert [job.method for job in jobs(plan, ())][:4] == ["single"] * 2 + ["stream-t1"] * 2


def test_what_is_done_is_not_done_again(tmp_path):
    plan = plan_of(tmp_path)
    work = jobs(plan, ())
    done = {work[0].key("mean", 0), *(work[1].key("mean", p) for p in work[1].prompts)}
    left = jobs(plan, done)
    assert left[0] == replace(work[0], prompts=(1,)) and left[1:] == work[2:]
    every = {job.key("mean", p) for job in work for p in job.prompts}
    assert jobs(plan, every) == []


def test_two_names_of_one_method_are_made_once(tmp_path):
    plan = plan_of(tmp_path, ("stream-t1", "stream-t1[2x2]", "stream-t1[1x2]"))
    assert same_settings(plan, plan.methods) == [
        ["stream-t1", "stream-t1[2x2]"],
        ["stream-t1[1x2]"],
    ]
    assert {job.method for job in jobs(plan, ())} == {"stream-t1", "stream-t1[1x2]"}
    rows = maker_of(plan).make(jobs(plan, ())[0])
    copies = under_all_names(plan, rows)
    assert [copy.key.method for copy in copies] == ["stream-t1[2x2]"] * 2
    assert [replace(c, key=r.key) for c, r in zip(copies, rows, strict=True)] == rows
    assert under_all_names(plan, [*rows, *copies]) == []
    assert [c.key.method for c in under_all_names(plan, copies)] == ["stream-t1"] * 2


def test_a_row_holds_what_the_engine_alone_would_make(tmp_path):
    plan = plan_of(tmp_path, keep=2)
    maker = maker_of(plan)
    job = jobs(plan, ())[1]
    rows = maker.make(job)
    for row, prompt in zip(rows, job.prompts, strict=True):
        settings = plan.settings("stream-t1", 3.0 * CHUNKS, 42)
        events = list(run.Engine(settings, maker._given).stream(plan.texts[prompt]))
        frames = to_bytes(torch.cat([event.frames for event in events]))
        assert torch.equal(load_frames(tmp_path, row), frames)
        assert row.scores["Imaging"] == frames.double().mean().item() / 255
        assert row.routes == tuple(event.route.value for event in events)
        assert row.key == job.key("mean", prompt) and row.text == plan.texts[prompt]
    assert rows[0].scores != rows[1].scores or rows[0].text != rows[1].text


def test_seeds_and_methods_reach_the_engine(tmp_path):
    plan = plan_of(tmp_path, prompts=1)
    maker = maker_of(plan)
    bright = [maker.make(job)[0].scores["Imaging"] for job in jobs(plan, ())]
    assert len(set(bright)) == len(bright) == 4
    again = maker_of(plan)
    assert [again.make(job)[0].scores["Imaging"] for job in jobs(plan, ())] == bright


def test_a_method_that_routes_nothing_has_no_routes(tmp_path):
    plan = plan_of(tmp_path, ("single", "beam", "no-sinking", "stream-t1"), prompts=1)
    maker = maker_of(plan)
    counts = {job.method: len(maker.make(job)[0].routes) for job in jobs(plan, ())}
    assert counts == {"single": 0, "beam": 0, "no-sinking": 0, "stream-t1": CHUNKS}


def test_frames_are_kept_of_the_first_prompts_and_the_first_seed(tmp_path):
    plan = plan_of(tmp_path, ("single",), keep=1)
    maker = maker_of(plan)
    rows = [row for job in jobs(plan, ()) for row in maker.make(job)]
    assert {(r.key.prompt, r.key.seed) for r in rows if r.file} == {(0, 42)}


def test_the_world_is_shown_whole_videos_in_bytes(tmp_path):
    plan = plan_of(tmp_path, ("single",))
    maker = maker_of(plan)
    maker.make(jobs(plan, ())[0])
    frames = 5 + 6 * (CHUNKS - 1)
    assert maker.world.judged == [(p, (frames, 4, 2, 2), torch.uint8, 2) for p in (0, 1)]


def test_a_world_that_files_videos_is_given_them_first(tmp_path):
    class Filing(MeanWorld):
        def file(self, frames, key, text, fps):
            self.judged.append((key.prompt, text))

    plan = plan_of(tmp_path, ("single",), prompts=1)
    maker = Maker(plan, Filing(), tiny_engine(CHUNKS).parts)
    maker.make(jobs(plan, ())[0])
    assert maker.world.judged[0] == (0, "a red circle") and len(maker.world.judged) == 2


@pytest.mark.parametrize(
    ("value", "byte"), [(-1.0, 0), (0.5 / 255 - 1e-4, 0), (0.999, 255), (2.0, 255)]
)
def test_bytes_are_rounded_and_bounded(value, byte):
    assert to_bytes(torch.tensor([value])).item() == byte


def test_models_are_loaded_again_only_for_a_method_with_others(tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(run.Parts, "load", lambda settings: loaded.append(settings) or settings)
    plan = plan_of(tmp_path)
    maker = Maker(plan, MeanWorld())
    for method in (
        "single",
        "stream-t1[4x2]",
        "no-pruning",
        "stream-t1[reward.tau=1.0]",
        "released",
    ):
        maker._loaded(plan.settings(method, 5.0))
    assert len(loaded) == 1 and loaded[0].search.policy == "stream-t1"  # rewards are there for all
    maker._loaded(plan.settings("stream-t1[reward.decoder=tiny]", 5.0))
    assert len(loaded) == 2


def test_time_left_goes_by_candidates_and_length(tmp_path):
    plan = plan_of(
        tmp_path, ("single", "no-pruning", "stream-t1", "released"), prompts=2, seeds=(42,)
    )
    single, alone, search, cold = (weight(plan, job) for job in jobs(plan, ()))
    assert single == alone < search < cold


@pytest.mark.slow
def test_workers_make_the_same_rows_as_one_process(tmp_path):
    plan = plan_of(tmp_path, ("single",), seconds=(0.5,), changes={"run.generator": "sprites"})
    work = jobs(plan, ())
    alone = [rows for _, rows in run.made(plan, work, MeanWorld())]
    both = dict(run.made(plan.with_workers(2), work, MeanWorld()))

    def bright(batches):
        rows = sorted((row for its in batches for row in its), key=lambda row: str(row.key))
        return [row.scores["Imaging"] for row in rows]

    assert len(bright(alone)) == 6
    assert bright(both.values()) == pytest.approx(bright(alone))
    assert {r.scores[RIGHT] for rows in alone for r in rows} <= {0.0, 1.0}

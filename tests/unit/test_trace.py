"""The trace: what is written can be read, at every moment, whatever the numbers are."""

import base64
import io
import json
import math
import tracemalloc
from dataclasses import replace

import av
import pytest
import torch

import runtime
from runtime.settings import Settings
from runtime.thumbnails import THUMBNAIL_PIXELS, thumbnails
from runtime.trace import TraceWriter, read_trace
from runtime.types import Scores
from tests.fake_engine import FakeEngine

PROMPT = 'a "red" disc\nand a grün one'


def begin(trace, engine, settings=None):
    ops = engine.implementations
    trace.begin(PROMPT, settings or Settings(), engine.fps, engine.chunks, ops)


def run(path, settings=None, change=lambda record: record, stop=None):
    """Trace a fake video; ``stop`` is the chunk at which Ctrl-C comes. Returns what was settled."""
    engine = FakeEngine(settings)
    events = []
    with TraceWriter(path) as trace:
        begin(trace, engine, settings)

        def watch(record):
            if record.index == stop:
                raise KeyboardInterrupt
            trace(change(record))

        for event in engine.stream(PROMPT, watch=watch):
            trace.settled(event)
            events.append(event)
    return events


def with_scores(record, scores):
    changed = tuple(replace(c, scores=scores) for c in record.candidates)
    return replace(record, candidates=changed)


def test_what_was_written_is_read_back(tmp_path):
    records = []
    settings = Settings().with_changes({"search.histories": 3})
    events = run(tmp_path / "t.json", settings, lambda r: records.append(r) or r)
    trace = read_trace(tmp_path / "t.json")
    assert (trace.prompt, trace.fps, trace.planned_chunks, trace.outcome) == (
        PROMPT,
        16,
        7,
        "finished",
    )
    assert trace.settings["search"]["histories"] == 3
    assert trace.versions["runtime"] == runtime.__version__
    assert trace.implementations == {"noise": "torch"}
    assert len(trace.chunks) == len(records) == 7
    for chunk, record in zip(trace.chunks, records, strict=True):
        assert chunk.index == record.index
        assert chunk.stage_ms == pytest.approx(record.stage_ms)
        assert [chunk.survivors()[r].row for r in range(len(record.kept))] == list(record.kept)
        for got, want in zip(chunk.candidates, record.candidates, strict=True):
            assert (got.row, got.seed, got.expansion) == (
                want.row,
                want.branch.seed,
                want.branch.expansion,
            )
            assert got.parent == (want.branch.rank if record.index else None)
            assert (got.short, got.long, got.fused) == (
                want.scores.short,
                want.scores.long,
                want.scores.fused,
            )
            assert (got.quality_gain, got.long_drop) == (
                want.scores.quality_gain,
                want.scores.long_drop,
            )
            assert got.route == want.route.value
    assert trace.path == tuple(event.seed for event in events)


def test_the_shown_candidates_are_the_ancestry_of_the_video(tmp_path):
    events = run(tmp_path / "t.json")
    shown = read_trace(tmp_path / "t.json").shown()
    assert [c.seed for c in shown] == [event.seed for event in events]
    assert [c.short for c in shown] == [event.scores.short for event in events]


def test_ranks_stay_true_when_a_short_horizon_ends_histories_early(tmp_path):
    changes = {"search.histories": 4, "search.horizon_chunks": 1, "seconds": 10.0}
    events = run(tmp_path / "t.json", Settings().with_changes(changes))
    trace = read_trace(tmp_path / "t.json")
    assert min(len(chunk.survivors()) for chunk in trace.chunks[1:]) < 4
    assert [c.seed for c in trace.shown()] == [event.seed for event in events]


def test_a_stopped_run_leaves_valid_json(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "t.json", stop=4)
    trace = read_trace(tmp_path / "t.json")
    assert (len(trace.chunks), trace.planned_chunks, trace.outcome) == (4, 7, "interrupted")
    assert len(trace.shown()) == len(trace.path) <= 4


def test_the_file_is_valid_after_every_chunk(tmp_path):
    engine = FakeEngine()
    with TraceWriter(tmp_path / "t.json") as trace:
        begin(trace, engine)
        assert read_trace(tmp_path / "t.json").chunks == ()

        def watch(record):
            trace(record)
            seen = read_trace(tmp_path / "t.json")
            assert (len(seen.chunks), seen.outcome) == (record.index + 1, "unfinished")

        for _ in engine.stream(PROMPT, watch=watch):
            pass


def test_a_failure_is_told(tmp_path):
    with pytest.raises(RuntimeError), TraceWriter(tmp_path / "t.json") as trace:
        begin(trace, FakeEngine())
        raise RuntimeError
    assert read_trace(tmp_path / "t.json").outcome == "failed"


def test_numbers_that_json_does_not_have_become_null(tmp_path):
    scores = Scores(math.nan, math.inf, -math.inf)
    run(tmp_path / "t.json", change=lambda record: with_scores(record, scores))
    written = json.loads(
        (tmp_path / "t.json").read_text(), parse_constant=lambda name: pytest.fail(name)
    )
    first = written["chunks"][0]["candidates"][0]
    assert (first["short"], first["long"], first["fused"]) == (None, None, None)
    read = read_trace(tmp_path / "t.json").chunks[0].candidates[0]
    assert math.isnan(read.short) and math.isnan(read.fused)


def test_pictures_are_the_last_frames(tmp_path):
    records = []
    run(tmp_path / "t.json", change=lambda r: records.append(r) or r)
    trace = read_trace(tmp_path / "t.json")
    with av.open(io.BytesIO(trace.chunks[2].candidates[1].thumbnail)) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24") / 255
    wanted = records[2].frames[1][-1].permute(1, 2, 0)
    assert picture.shape == wanted.shape
    assert (torch.from_numpy(picture) - wanted).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(480, 832, (55, 96)), (96, 96, (96, 96)), (30, 41, (30, 41)), (1, 2000, (1, 96))],
)
def test_pictures_are_small_and_keep_their_shape(height, width, size):
    frames = torch.rand(2, 3, 3, height, width)
    frames[1] = math.nan
    for picture in thumbnails(frames):
        with av.open(io.BytesIO(base64.b64decode(picture))) as container:
            frame = next(container.decode(video=0))
        assert (frame.height, frame.width) == size
        assert frame.width <= THUMBNAIL_PIXELS


def test_a_trace_that_never_began_leaves_no_file(tmp_path):
    (tmp_path / "old.json").write_text("precious")
    for name in ("old.json", "new.json"):
        TraceWriter(tmp_path / name).close()
    assert (tmp_path / "old.json").read_text() == "precious"
    assert not (tmp_path / "new.json").exists()


def test_memory_does_not_grow_with_the_video(tmp_path):
    records = []
    for _ in FakeEngine(Settings(seconds=1.0), size=8).stream(PROMPT, watch=records.append):
        pass
    with TraceWriter(tmp_path / "t.json") as trace:
        begin(trace, FakeEngine())
        peaks = []
        tracemalloc.start()
        for index in range(60):
            trace(replace(records[0], index=index))
            if index in (19, 59):
                peaks.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 20_000


def test_a_full_disk_leaves_the_trace_valid(tmp_path):
    class Full(io.FileIO):
        room = 10**9

        def write(self, content):
            if self.tell() >= self.room:
                raise OSError(28, "No space left on device")
            return super().write(bytes(content[: self.room - self.tell()]))

    records = []
    for _ in FakeEngine().stream(PROMPT, watch=records.append):
        pass
    trace = TraceWriter(tmp_path / "t.json")
    begin(trace, FakeEngine())
    trace(records[0])
    trace._file._file.close()
    trace._file._file = Full(tmp_path / "t.json", "r+")
    trace._file._file.room = (tmp_path / "t.json").stat().st_size
    with pytest.raises(RuntimeError, match=r"cannot write .*t\.json: No space left on device"):
        trace(records[1])
    assert len(read_trace(tmp_path / "t.json").chunks) == 1
    trace.close("failed")
    assert read_trace(tmp_path / "t.json").outcome in ("failed", "unfinished")


def broken(path, change):
    """The JSON of a good trace with one thing changed."""
    run(path)
    whole = json.loads(path.read_text())
    change(whole)
    path.write_text(json.dumps(whole))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("format"), 'want an object with "format": "stream-t1-trace"'),
        (lambda t: t.update(version=99), "version: want 1, got 99"),
        (lambda t: t.pop("prompt"), "prompt: missing"),
        (lambda t: t.update(fps="16"), "fps: want int, got str"),
        (lambda t: t.update(path=["a"]), "path: want seeds"),
        (lambda t: t["chunks"].pop(1), r"chunks\[1\].index: want 1, got 2"),
        (lambda t: t["chunks"].insert(0, 7), r"chunks\[0\].index: missing"),
        (
            lambda t: t["chunks"][1]["candidates"][2].update(parent=9),
            r"chunks\[1\].candidates\[2\].parent: want one of \[0, 1\], the survivors of the chunk before, got 9",
        ),
        (
            lambda t: t["chunks"][0]["candidates"][0].update(route="burn"),
            "route: want one of discard, ema, append, got 'burn'",
        ),
        (
            lambda t: t["chunks"][0]["candidates"][0].update(short="good"),
            r"candidates\[0\].short: want float, got str",
        ),
        (lambda t: t["chunks"][0]["candidates"][0].update(seed=True), "seed: want int, got bool"),
        (lambda t: t["chunks"][0]["candidates"][0].update(thumbnail="?"), r"thumbnail: "),
    ],
)
def test_a_malformed_trace_is_told_where(tmp_path, change, message):
    broken(tmp_path / "t.json", change)
    with pytest.raises(ValueError, match=message):
        read_trace(tmp_path / "t.json")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"9" * 10_000, b"null", b"[]"]
)
def test_what_is_no_trace_is_a_clear_error(tmp_path, content):
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"t\.json: not (valid JSON|a trace): "):
        read_trace(tmp_path / "t.json")


def test_a_missing_or_huge_file_is_a_clear_error(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_trace(tmp_path / "none.json")
    monkeypatch.setattr("runtime.trace.MAX_BYTES", 2**20)
    (tmp_path / "t.json").write_bytes(b" " * (2**20 + 1))
    with pytest.raises(ValueError, match="want at most 1 MiB"):
        read_trace(tmp_path / "t.json")

"""The command line when all goes well: what is written, what is said, how options become settings."""

import re
import subprocess
import sys
from pathlib import Path

import av
import pytest

import runtime
from runtime.__main__ import main
from runtime.trace import read_trace
from tests.fake_engine import FakeEngine

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "a red disc moves left"


def frames_in(path):
    with av.open(path) as container:
        return sum(1 for _ in container.decode(video=0))


def never(settings):
    raise AssertionError("the engine must not be built for a call that is wrong")


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run the door in an empty folder; returns exit code, stdout, and the lines of stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, build=FakeEngine):
        code = main([str(argument) for argument in arguments], build)
        captured = capsys.readouterr()
        return code, captured.out, captured.err.splitlines()

    return run


def test_a_prompt_becomes_a_video_and_a_report(call, tmp_path):
    code, out, err = call(PROMPT, "-o", "a.mp4", "--trace", "t.json")
    assert (code, err) == (0, [])
    assert frames_in("a.mp4") == 81
    video = re.search(
        r"^video +(\S+) \(\d+ KiB, 81 frames of 384x384, 5.1 s at 16 fps\)$", out, re.M
    )
    assert video and video[1] == str(tmp_path.resolve() / "a.mp4")
    assert "search  stream-t1 (paper), K=2, M=2, seed 42: 28 candidates" in out
    assert re.search(r"^routes +(append|discard|ema) \d", out, re.M)
    assert re.search(r"^seeds +4\d(, \d+){6}$", out, re.M)
    assert re.search(r"^speed +\d+\.\d frames/s with decoder and rewards", out, re.M)
    assert f"python -m runtime.bench.tree {tmp_path.resolve()}/t.json" in out
    trace = read_trace("t.json")
    assert (trace.prompt, trace.outcome, len(trace.shown())) == (PROMPT, "finished", 7)


def test_flags_become_settings(call):
    seen = []

    def build(settings):
        seen.append(settings)
        return FakeEngine(settings)

    arguments = (
        "--seconds 1 --policy beam --histories 3 --expansions 4 --seed 7 --fidelity released "
    )
    arguments += "--schedule released --rope relative --no-propagation --no-sinking --no-pruning "
    arguments += "--set search.horizon_chunks=20 --set noise.beta=0.5 --set memory.keep_last=on --set search.seed=8"
    assert call(PROMPT, *arguments.split(), "--quiet", build=build) == (0, "", [])
    s = seen[0]
    assert (s.seconds, s.fidelity, s.run.schedule, s.noise.beta) == (
        1.0,
        "released",
        "released",
        0.5,
    )
    assert (s.search.policy, s.search.histories, s.search.expansions) == ("beam", 3, 4)
    assert (s.search.seed, s.search.horizon_chunks) == (8, 20)
    assert (s.memory.rope, s.memory.sinking, s.memory.keep_last) == ("relative", False, True)
    assert (s.search.propagation, s.search.pruning) == (False, False)


def test_scenes_reach_the_engine_and_the_trace(call):
    told, warned = [], call(PROMPT, "--then", "2=a dragon", "--then", "4= a = b ", "--trace", "t.json")[2]  # fmt: skip
    assert warned == ["warning: the model does not know these words: dragon"]
    want = f"{PROMPT} | from chunk 2: a dragon | from chunk 4: a = b"
    assert read_trace("t.json").prompt == want

    class Listening(FakeEngine):
        def stream_many(self, prompts, *, watch=None):
            told.extend(prompts)
            return super().stream_many(prompts, watch=watch)

    call(PROMPT, "--then", "2=a dragon", build=Listening)
    assert told == [((0, PROMPT), (2, "a dragon"))]


def test_a_prompts_file_makes_numbered_videos_and_traces(call):
    Path("prompts.txt").write_text("\ufeffone disc\r\n\n  two grün discs \n", encoding="utf-8")
    code, out, err = call(
        "--prompts-file", "prompts.txt", "-o", "v.mp4", "--trace", "t.json", "--seconds", 1
    )
    assert (code, err) == (0, [])
    assert sorted(p.name for p in Path().iterdir()) == [
        *("prompts.txt", "t_000.json", "t_001.json", "v_000.mp4", "v_001.mp4")
    ]
    assert [read_trace(f"t_00{i}.json").prompt for i in (0, 1)] == ["one disc", "two grün discs"]
    assert out.count("video ") == 2


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_prompts_of_a_batch_are_reported_one_by_one(call, batch):
    Path("prompts.txt").write_text("one\ntwo\nthree\n", encoding="utf-8")
    code, out, err = call(
        *("--prompts-file", "prompts.txt", "-o", "v.mp4", "--trace", "t.json"),
        *("--seconds", 2, "--batch", batch),
    )
    assert (code, err) == (0, [])
    assert out.count("video ") == 3 and out.index("v_000.mp4") < out.index("v_002.mp4")
    traces = [read_trace(f"t_00{i}.json") for i in range(3)]
    assert [trace.prompt for trace in traces] == ["one", "two", "three"]
    assert [len(trace.chunks) for trace in traces] == [3, 3, 3]


def test_as_many_prompts_as_fit_but_no_more_than_there_are(call):
    Path("prompts.txt").write_text("one\ntwo\n", encoding="utf-8")
    built = []

    def build(settings):
        built.append(settings.run.prompts)
        return FakeEngine(settings)

    files = "--prompts-file", "prompts.txt", "-o", "v.mp4"
    assert call(*files, "--seconds", 1, "--batch", 0, build=build)[0] == 0
    assert built == [2]


def test_stopped_in_a_batch_every_video_keeps_what_it_has(call):
    Path("prompts.txt").write_text("one\ntwo\n", encoding="utf-8")

    def stop(index: int) -> None:
        if index == 3:
            raise KeyboardInterrupt

    code, _, err = call(
        *("--prompts-file", "prompts.txt", "-o", "v.mp4", "--seconds", 5, "--batch", 2),
        build=lambda settings: FakeEngine(settings, before=stop),
    )
    assert code == 130
    assert "are playable in v_000.mp4" in err[0] and "are playable in v_001.mp4" in err[0]


def test_unknown_words_are_a_warning(call):
    code, _, err = call("a red dragon", "--seconds", 1)
    assert (code, err) == (0, ["warning: the model does not know these words: dragon"])


def test_a_prompt_may_begin_with_a_dash(call):
    assert call("--quiet", "--seconds", 1, "--", "-a disc")[0] == 0
    code, _, err = call("-disc", build=never)
    assert code == 2 and "a prompt that begins with '-' goes last, after '--'" in err[0]


def test_scale_and_quiet(call):
    code, out, err = call(PROMPT, "--scale", 2, "--seconds", 1, "--quiet", "-o", "a.mp4")
    assert (code, out, err) == (0, "", [])
    with av.open("a.mp4") as container:
        assert container.streams.video[0].width == 64


def test_help_version_and_errors_need_no_model_library():
    script = """
import sys
from runtime.__main__ import main
for arguments in (["--version"], ["--help"], ["x", "--seed", "y"], ["x", "-o", "/nowhere/x.mp4"]):
    try:
        main(arguments)
    except SystemExit:
        pass
print(sorted({"torch", "numpy", "av", "transformers"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[0] == f"stream-t1-runtime {runtime.__version__}"
    assert lines[-1] == "[]"
    assert "--no-propagation" in done.stdout
    assert done.stderr.count("error: ") == 2


def test_every_option_is_in_the_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in ("--prompts-file", "--policy", "--no-pruning", "--set", "--trace", "--scale"):
        assert option in text


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--generator", "longlive"], []),
        (["--preset", "sprites-256"], []),
        (["--set", "run.generator=/some/folder"], ["sprites-image", "sprites-video"]),
        (["--set", "run.generator=longlive", "--set", "reward.image=hpsv3*2+sprites-image"], ["sprites-image", "sprites-video"]),
        (["--preset", "longlive", "--set", "reward.video=sprites-video"], ["sprites-video"]),
    ],
    ids=str,
)  # fmt: skip
def test_embedded_rewards_that_judge_another_world_are_warned_about(call, arguments, names):
    code, _, err = call(PROMPT, *arguments)
    assert code == 0
    told = " and ".join(names)
    assert [line.partition(" know ")[0] for line in err] == ([f"warning: {told}"] if told else [])

"""What can go wrong at the command line: one clear line, the right exit code, no lost chunk."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest

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


# What the caller got wrong: exit code 2, before any model is loaded


WRONG = [
    ([], "no prompt: say in quotes what the video shows"),
    ([""], "prompt: is empty; say what the video shows"),
    ([" \n\t"], "prompt: is empty"),
    (["x" * 50_000], "prompt: want at most 4096 characters, got 50000"),
    (["\udcff disc"], "prompt: is not valid UTF-8"),
    ([PROMPT, "and", "more"], "unexpected 'and'; put the whole prompt in quotes"),
    ([PROMPT, "--polcy", "beam"], "--polcy: no such option; did you mean --policy?"),
    ([PROMPT, "--seed"], "argument --seed: expected one argument"),
    (
        [PROMPT, "--policy", "bean"],
        "search.policy: want one of .* got 'bean'; did you mean 'beam'?",
    ),
    ([PROMPT, "--preset", "sprits"], "preset: .* did you mean 'sprites'?"),
    ([PROMPT, "--histories", "two"], "search.histories: want a whole number, got 'two'"),
    ([PROMPT, "--histories", "0"], "search.histories: want at least 1, got 0"),
    ([PROMPT, "--expansions", "101"], "search.expansions: want at most 100, got 101"),
    ([PROMPT, "--seed", "-1"], "search.seed: want a value in"),
    ([PROMPT, "--seconds", "nan"], "seconds: want a length in"),
    ([PROMPT, "--seconds", "-3"], "seconds: want a length in"),
    ([PROMPT, "--seconds", "1e9"], "seconds: want a length in"),
    ([PROMPT, "--scale", "17"], "--scale: want 1 to 16, got 17"),
    ([PROMPT, "--scale", "x"], "argument --scale: invalid int value: 'x'"),
    ([PROMPT, "--set", "search.horizon"], "--set: want NAME=VALUE, got 'search.horizon'"),
    (
        [PROMPT, "--set", "search.horizn_chunks=1"],
        "no such setting; did you mean search.horizon_chunks?",
    ),
    (
        [PROMPT, "--set", "memory.window_frames=10"],
        "memory.window_frames: want a .*multiple of .* got 10",
    ),
    ([PROMPT, "--set", "memory.window_frames=6"], "memory.window_frames: want at least .* got 6"),
    (
        [PROMPT, "--set", "memory.max_sink_frames=0"],
        "memory.max_sink_frames: want a positive multiple",
    ),
    ([PROMPT, "--set", "memory.sinking=maybe"], "memory.sinking: want true or false, got 'maybe'"),
    ([PROMPT, "-o", "missing/a.mp4"], "--output: there is no folder missing; make it first"),
    ([PROMPT, "-o", "folder.mp4"], "--output: folder.mp4 is a folder; want the name of a file"),
    ([PROMPT, "-o", "a.gif"], "--output: want a name that ends in .mp4, got a.gif"),
    ([PROMPT, "-o", ""], "--output: "),
    ([PROMPT, "-o", "n" * 300 + ".mp4"], "--output: cannot write .*: File name too long"),
    ([PROMPT, "-o", "file.txt/a.mp4"], "--output: there is no folder file.txt; make it first"),
    ([PROMPT, "--trace", "missing/t.json"], "--trace: there is no folder missing; make it first"),
    ([PROMPT, "-o", "a.mp4", "--trace", "./a.mp4"], "--trace: a.mp4 is where the video goes"),
    ([PROMPT, "--prompts-file", "latin.txt"], "want a prompt or --prompts-file, not both"),
    (["--prompts-file", "many.txt", "--then", "1=x"], "--then: goes with a prompt, not with"),
    ([PROMPT, "--then", "x"], "--then: want CHUNK=PROMPT, as in 8='a blue star', got 'x'"),
    ([PROMPT, "--then=-1=x"], "--then: want CHUNK=PROMPT"),
    ([PROMPT, "--then", "1= "], "--then: is empty; say what the video shows"),
    (["--prompts-file", "latin.txt"], "--prompts-file: latin.txt: line 2 is not valid UTF-8"),
    (["--prompts-file", "none.txt"], "--prompts-file: cannot read none.txt: No such file"),
    (["--prompts-file", "folder.mp4"], "--prompts-file: cannot read folder.mp4: Is a directory"),
    (["--prompts-file", "blank.txt"], "--prompts-file: want 1 to 1000 prompts, got 0: blank.txt"),
    (["--prompts-file", "many.txt"], "--prompts-file: want 1 to 1000 prompts, got 1001: many.txt"),
    (["--prompts-file", "long.txt"], "--prompts-file: long.txt: line 2: want at most 4096"),
    (["--prompts-file", "huge.txt"], "--prompts-file: want at most 4 MiB: huge.txt"),
    (["--prompts-file", "/dev/zero"], "--prompts-file: want at most 4 MiB: /dev/zero"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), WRONG, ids=[message[:40] for _, message in WRONG]
)
def test_a_wrong_call_is_one_clear_line(call, arguments, message):
    Path("folder.mp4").mkdir()
    Path("file.txt").write_text("")
    Path("latin.txt").write_bytes(b"a disc\na gr\xfcn disc\n")
    Path("blank.txt").write_text("\n \n")
    Path("many.txt").write_text("a disc\n" * 1001)
    Path("long.txt").write_text("a disc\n" + "x" * 5000)
    Path("huge.txt").write_text("a disc\n" * 700_000)
    before = sorted(Path().rglob("*"))
    code, out, err = call(*arguments, build=never)
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].startswith("error: ") and re.search(message.replace("?", r"\?"), err[0]), err[0]
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("scenes", "message"),
    [
        (
            ["7=x"],
            "prompts: want chunks below 7, which this video has, got 7; ask for more seconds",
        ),
        (["3=x", "3=y"], "prompts: want chunks in order, got 3 after 3"),
        (["0=x"], "prompts: want chunks in order, got 0 after 0"),
    ],
)
def test_scenes_that_do_not_fit_the_video_touch_no_file(call, scenes, message):
    arguments = [part for scene in scenes for part in ("--then", scene)]
    code, out, err = call(PROMPT, *arguments)
    assert (code, out, err) == (2, "", [f"error: {message}"])
    assert list(Path().iterdir()) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_told(call):
    Path("locked").mkdir(mode=0o500)
    code, _, err = call(PROMPT, "-o", "locked/a.mp4", build=never)
    assert (code, err) == (2, ["error: --output: cannot write locked/a.mp4: Permission denied"])


def test_a_wrong_call_leaves_an_old_video_alone(call):
    Path("a.mp4").write_bytes(b"precious")
    assert call(PROMPT, "-o", "a.mp4", "--trace", "missing/t.json", build=never)[0] == 2
    assert Path("a.mp4").read_bytes() == b"precious"


# What the machine got wrong: exit code 1


@pytest.mark.parametrize(
    ("failure", "code", "line"),
    [
        (
            RuntimeError("weights.safetensors:\n  is cut short"),
            1,
            "weights.safetensors: is cut short",
        ),
        (ValueError("run.device: no CUDA here"), 2, "run.device: no CUDA here"),
        (OSError(5, "Input/output error"), 1, "[Errno 5] Input/output error"),
        (MemoryError(), 1, "MemoryError:"),
        (KeyError("blocks.0"), 1, "KeyError: 'blocks.0'"),
    ],
)
def test_what_the_engine_says_while_it_loads_is_passed_on(call, failure, code, line):
    def build(settings):
        raise failure

    assert call(PROMPT, build=build) == (code, "", [f"error: {line}"])
    assert not Path("out.mp4").exists()


def test_debug_shows_the_traceback(call):
    def build(settings):
        raise KeyError("blocks.0")

    with pytest.raises(KeyError):
        call(PROMPT, "--debug", build=build)


def at_chunk(number, action):
    """An engine that calls ``action`` before it makes chunk ``number``; one history, so every chunk settles at once."""

    def before(index):
        if index == number:
            action()

    return lambda settings: FakeEngine(settings, before=before)


def fail():
    raise RuntimeError("CUDA out of memory. Tried to\nallocate 2 GiB")


def test_a_failure_in_the_middle_keeps_the_settled_chunks(call):
    code, out, err = call(
        PROMPT, "--policy", "single", "--trace", "t.json", build=at_chunk(3, fail)
    )
    assert (code, out) == (1, "")
    assert err == [
        "error: CUDA out of memory. Tried to allocate 2 GiB; 33 frames (2.1 s) are playable in out.mp4"
    ]
    assert frames_in("out.mp4") == 33
    assert read_trace("t.json").outcome == "failed"


def test_a_failure_before_the_first_chunk_leaves_no_file(call):
    code, _, err = call(PROMPT, build=at_chunk(0, fail))
    assert code == 1 and err[0].endswith("no chunk was finished, so there is no video")
    assert not Path("out.mp4").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_named(call):
    code, _, err = call(PROMPT, "-o", "/dev/full")
    assert code == 1 and len(err) == 1
    assert err[0].startswith("error: cannot write /dev/full: No space left on device; ")


@pytest.mark.parametrize("limited", ["out.mp4", "t.json"])
def test_a_disk_that_fills_up_in_the_middle_keeps_what_fits(call, limited):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    bytes_now = []

    def fill():
        bytes_now.append(Path(limited).stat().st_size)
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_now[0] + 300, hard))

    try:
        code, _, err = call(
            PROMPT, "--policy", "single", "--trace", "t.json", build=at_chunk(2, fill)
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 1 and len(err) == 1
    assert re.match(rf"error: cannot write {limited}: File too large; 21 frames ", err[0])
    assert frames_in("out.mp4") == 21
    assert len(read_trace("t.json").chunks) >= 2


# Ctrl-C and SIGTERM


def ctrl_c():
    raise KeyboardInterrupt


def test_ctrl_c_keeps_the_best_history_so_far(call):
    code, out, err = call(PROMPT, "--trace", "t.json", build=at_chunk(4, ctrl_c))
    assert (code, out) == (130, "")
    assert err == ["stopped: after chunk 4 of 7; 45 frames (2.8 s) are playable in out.mp4"]
    assert frames_in("out.mp4") == 45
    trace = read_trace("t.json")
    assert trace.outcome == "interrupted"
    assert len(trace.shown()) == len(trace.chunks) == 4


def test_ctrl_c_while_loading_is_one_line(call):
    assert call(PROMPT, build=lambda settings: ctrl_c()) == (
        *(130, ""),
        ["stopped: nothing was generated yet"],
    )
    assert not Path("out.mp4").exists()


SLOW = """
import signal, sys, time
from runtime.__main__ import main
from tests.fake_engine import FakeEngine
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job begins with it ignored
build = lambda settings: FakeEngine(settings, before=lambda index: time.sleep(0.1 if index < 3 else 60))
sys.exit(main(sys.argv[1:], build))
"""


def test_ctrl_c_from_outside_leaves_a_video_that_plays(tmp_path):
    arguments = [PROMPT, "--policy", "single", "-o", str(tmp_path / "a.mp4")]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        patience = time.monotonic() + 60
        while time.monotonic() < patience and not settled(tmp_path / "a.mp4", 33):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert (
        err == f"stopped: after chunk 3 of 7; 33 frames (2.1 s) are playable in {tmp_path}/a.mp4\n"
    )
    assert frames_in(tmp_path / "a.mp4") == 33


def settled(path, frames):
    return path.exists() and path.stat().st_size > 0 and frames_in(path) >= frames


def test_sigterm_is_like_ctrl_c_with_its_own_exit_code(call):
    before = signal.getsignal(signal.SIGTERM)
    kill = at_chunk(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    code, _, err = call(PROMPT, build=kill)
    assert code == 143
    assert err == ["stopped: after chunk 2 of 7; 21 frames (1.3 s) are playable in out.mp4"]
    assert frames_in("out.mp4") == 21
    assert signal.getsignal(signal.SIGTERM) is before

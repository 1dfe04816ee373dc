"""The server's side of the link, with real processes that need no torch and misbehave on demand."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest

from runtime.serve.backend import WorkerGone
from runtime.serve.link import UNSENT_BYTES, Patience, WorkerLink, ending, inherited
from runtime.serve.wire import MAX_LINE_BYTES

QUICK = Patience(quiet_s=0.3, hung_s=0.8, exit_s=0.5)
LONG = 30.0  # a generous timeout


async def until(true):
    """Wait for something to be true."""
    for _ in range(int(LONG / 0.01)):
        if found := true():
            return found
        await asyncio.sleep(0.01)
    raise AssertionError("it never became true")


@contextlib.asynccontextmanager
async def worker(patience=None):
    """A ready worker, what it said, and a way to wait for an event of a kind."""
    events = []

    def hear(event):
        events.append(event)
        if event.get("said") == "choke":
            raise KeyError("a listener's mistake")

    def told(kind):
        return until(lambda: next((event for event in events if event["event"] == kind), None))

    link = WorkerLink(["--x", "1"], module="tests.small_worker_process", patience=patience)
    await link.start(hear)
    try:
        await told("ready")
        yield link, events, told
    finally:
        await asyncio.wait_for(link.stop(0), LONG)


def runs(scenario, patience=None):
    async def run():
        async with worker(patience) as at:
            await scenario(*at)

    asyncio.run(run())


def gone(pid):
    """Whether a process has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_events_come_in_order_and_a_listener_that_chokes_cuts_nothing():
    async def scenario(link, events, told):
        for say in [*range(50), "choke", "ü" * 500_000, "last"]:
            link.send({"do": "echo", "say": say})
        await until(lambda: events[-1].get("said") == "last")
        assert [e["said"] for e in events[1:]] == [*range(50), "choke", "ü" * 500_000, "last"]
        assert events[0]["arguments"][:2] == ["--x", "1"] and link.alive

    runs(scenario)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ({"do": "signal", "name": "SIGKILL"}, "the worker was killed by signal 9 (SIGKILL)"),
        ({"do": "signal", "name": "SIGSEGV"}, "the worker was killed by signal 11 (SIGSEGV)"),
        ({"do": "exit", "code": 3}, "the worker ended by itself with exit code 3"),
        ({"do": "say raw", "text": "no json\n"}, "did not speak the protocol (a line: not valid"),
        ({"do": "say raw", "text": "\xff\x00\n"}, "did not speak the protocol (a line: want UTF-8"),
        ({"do": "say raw", "text": '{"evil": 1}\n'}, "did not speak the protocol ('event')"),
        ({"do": "say raw", "text": '{"event": "fatal", "reason": "no GPU"}\n'}, ""),
        ({"do": "hang up"}, "closed its link, did not end and was killed"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_worker_that_dies_or_errs_is_gone_once_with_the_reason(command, reason):
    async def scenario(link, events, told):
        link.send(command)
        if "fatal" in command.get("text", ""):
            link.send({"do": "exit", "code": 1})
        event = await told("gone")
        assert (reason or "the worker could not go on: no GPU") in event["reason"]
        assert not link.alive and gone(link.pid)
        with pytest.raises(WorkerGone, match="the worker"):
            link.send({"do": "echo", "say": 1})
        await link.stop(1)
        assert [e["event"] for e in events].count("gone") == 1

    runs(scenario, QUICK)


def test_a_line_that_never_ends_is_not_kept():
    async def scenario(link, events, told):
        for _ in range(3):
            link.send({"do": "say raw", "text": "x" * (MAX_LINE_BYTES // 2)})
        link.send({"do": "say raw", "text": "\n"})
        assert "a line: is too long" in (await told("gone"))["reason"]

    runs(scenario)


def test_what_a_worker_said_before_it_died_is_heard_first():
    async def scenario(link, events, told):
        link.send({"do": "echo", "say": "x" * 2_000_000})
        link.send({"do": "signal", "name": "SIGKILL"})
        await told("gone")
        assert [e["event"] for e in events] == ["ready", "echo", "gone"]

    runs(scenario)


def test_a_silent_worker_is_not_alive_and_at_last_killed():
    async def scenario(link, events, told):
        assert link.alive
        os.kill(link.pid, signal.SIGSTOP)
        await until(lambda: not link.alive)
        assert len(events) == 1, "not gone yet"
        assert "said nothing for 0.8 s and was killed" in (await told("gone"))["reason"]

    runs(scenario, QUICK)


def test_a_silent_worker_that_speaks_again_is_alive_again():
    async def scenario(link, events, told):
        os.kill(link.pid, signal.SIGSTOP)
        await until(lambda: not link.alive)
        os.kill(link.pid, signal.SIGCONT)
        link.send({"do": "echo", "say": 1})
        await until(lambda: link.alive)

    runs(scenario, Patience(quiet_s=0.2, hung_s=LONG))


def test_a_worker_that_does_not_read_makes_send_refuse_and_never_wait():
    async def scenario(link, events, told):
        link.send({"do": "deaf"})
        big = {"do": "echo", "say": "x" * (MAX_LINE_BYTES - 100)}
        with pytest.raises(WorkerGone, match="left 16 MiB of commands unread"):
            for _ in range(100):
                link.send(big)
        assert link._transport.get_write_buffer_size() <= UNSENT_BYTES
        with pytest.raises(ValueError, match="want at most"):
            link.send({"do": "echo", "say": "x" * MAX_LINE_BYTES})

    runs(scenario)


def test_stop_asks_waits_and_takes_the_whole_group_without_a_gone():
    async def scenario(link, events, told):
        link.send({"do": "child"})
        child = (await told("child"))["pid"]
        await asyncio.wait_for(link.stop(10), LONG)
        assert events[-1] == {"event": "stopping", "do": "stop", "grace_s": 10}
        assert not link.alive and gone(link.pid)
        await until(lambda: gone(child))
        await link.stop(10)  # again is harmless

    runs(scenario)


def test_a_second_stop_with_no_grace_ends_it_at_once():
    async def scenario(link, events, told):
        slow = asyncio.create_task(link.stop(3600))
        await told("stopping")
        await asyncio.wait_for(link.stop(0), LONG)
        await asyncio.wait_for(slow, LONG)
        assert gone(link.pid) and events[-1]["event"] == "stopping"

    runs(scenario)


def test_a_worker_that_dies_takes_its_children_along():
    async def scenario(link, events, told):
        link.send({"do": "child"})
        child = (await told("child"))["pid"]
        link.send({"do": "signal", "name": "SIGKILL"})
        await told("gone")  # although the child holds the link open
        await until(lambda: gone(child))

    runs(scenario)


def test_a_worker_leads_a_session_of_its_own():
    async def scenario(link, events, told):
        assert os.getsid(link.pid) == os.getpgid(link.pid) == link.pid != os.getpgid(0)

    runs(scenario)


def test_a_worker_inherits_no_secret(monkeypatch):
    for name in ("STREAM_T1_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "UNRELATED"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("STREAM_T1_WEIGHTS", "/weights")

    async def scenario(link, events, told):
        link.send({"do": "environment"})
        found = (await told("environment"))["of"]
        assert "hunter2" not in found.values()
        assert found["STREAM_T1_WEIGHTS"] == "/weights" and found["PATH"] == os.environ["PATH"]

    runs(scenario)


def test_only_known_names_are_inherited():
    some = {"CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "1", "LC_ALL": "C", "XPATH": "no"}
    assert inherited(some | {"TRITON_SECRET": "no", "PASSWORD": "no"}) == {
        name: value for name, value in some.items() if value != "no"
    }


@pytest.mark.parametrize(
    ("code", "words"), [(0, "by itself with exit code 0"), (-9, "signal 9 (SIGKILL)"), (-99, "99")]
)
def test_an_exit_code_is_told_in_words(code, words):
    assert ending(code).endswith(words)


def test_a_link_that_was_never_started_refuses_and_stops():
    async def run():
        link = WorkerLink([])
        assert not link.alive and link.pid is None
        with pytest.raises(WorkerGone, match="does not run"):
            link.send({"do": "x"})
        await link.stop(1)

    asyncio.run(run())

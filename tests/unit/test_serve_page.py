"""The page in a real browser: the tree, the video, switching, keys, and that other people's words stay words."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed")
pytest.importorskip("websockets", reason="the server's packages are not installed")

from tests.chromium import Browser, Page, browser, executable
from tests.page_server import FakeJob, StandIn, serving, until
from tests.page_story import began, pieces, settled, turn

pytestmark = pytest.mark.skipif(executable() is None, reason="there is no Chromium on this machine")

EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
FATES = "Object.fromEntries([...document.querySelectorAll('.node')].map(n => [n.dataset.index + ' ' + n.dataset.row, n.dataset.fate]))"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    try:
        with browser() as running:
            yield running
    except RuntimeError as error:
        pytest.skip(f"Chromium does not run here: {error}")


@pytest.fixture(scope="module")
def stand_in() -> Iterator[StandIn]:
    with serving() as running:
        yield running


@pytest.fixture
def server(stand_in: StandIn) -> Iterator[StandIn]:
    yield stand_in
    stand_in.jobs.clear()
    stand_in.key = None


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    with chromium.page() as tab:
        tab.size(1280, 900)
        yield tab


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return pieces(str(tmp_path_factory.mktemp("film") / "film.mp4"), 4)


def three_chunks(server: StandIn) -> FakeJob:
    """Chunk 0 is settled as row 3; rank 0 of chunk 1 has no descendant; two histories live."""
    job = server.job("a", "a red circle")
    story = [began(6), turn(0, (0, 3)), turn(1, (1, 2)), turn(2, (2, 3)), settled(0, 3)]
    drawn = story[1]["candidates"]
    drawn[0]["seed"] = drawn[3]["seed"]  # seeds may repeat; scores tell who was settled
    job.events.extend(story)
    return job


def watch(page: Page, server: StandIn, nodes: int) -> None:
    page.open(server.url("videos/a"))
    page.wait(f"document.querySelectorAll('.node').length == {nodes}")


def count(page: Page, selector: str) -> int:
    return page.run(f"document.querySelectorAll({json.dumps(selector)}).length")


def test_every_candidate_is_in_the_tree_with_its_fate(server, page):
    three_chunks(server)
    watch(page, server, 12)
    page.wait("document.querySelector('.node[data-fate=settled]') !== null")
    fates = page.run(FATES)
    assert {name for name, fate in fates.items() if fate == "settled"} == {"0 3"}
    assert {name for name, fate in fates.items() if fate == "alive"} == {"1 2", "2 2", "2 3"}
    assert {name for name, fate in fates.items() if fate == "ended"} == {"0 0", "1 1"}
    assert sum(fate == "pruned" for fate in fates.values()) == 6
    opacity = "Number(getComputedStyle(document.querySelector('.node[data-fate={}] img')).opacity)"
    page.wait(f"{opacity.format('pruned')} < 0.5")  # fades to it
    assert page.run(opacity.format("alive")) == page.run(opacity.format("settled")) == 1
    assert page.errors == []


def test_every_line_leads_from_the_parent_to_the_child(server, page):
    three_chunks(server)
    watch(page, server, 12)
    assert count(page, ".lines path") == 8
    ends = page.run(
        """[...document.querySelectorAll('.column')].flatMap(column =>
          [...column.querySelectorAll('path')].map(path => {
            const box = column.getBoundingClientRect(), length = path.getTotalLength();
            const at = (s) => { const p = path.getPointAtLength(s); return [p.x + box.x, p.y + box.y]; };
            const under = ([x, y], dx) => document.elementsFromPoint(x + dx, y).find(e => e.closest('.node'))
              ?.closest('.node').dataset;
            const [from, to] = [under(at(0), -6), under(at(length), 6)];
            return [from.index, from.row, to.index, to.row].map(Number);
          }))"""
    )
    kept = {0: (0, 3), 1: (1, 2)}
    wanted = [[i, kept[i][row // 2], i + 1, row] for i in (0, 1) for row in range(4)]
    assert sorted(ends) == sorted(wanted)


def test_scores_and_route_are_told_for_what_is_focused(server, page):
    three_chunks(server)
    watch(page, server, 12)
    page.run('document.querySelector(\'.node[data-index="1"][data-row="2"]\').focus()')
    told = "document.querySelector('[data-field={}]').textContent"
    assert page.run(told.format("short")) == "0.270"
    assert page.run(told.format("long")) == "0.520"
    assert page.run(told.format("fused")) == "0.980"
    assert page.run(told.format("route")) == "dropped"
    assert page.run(told.format("seed")) == str(2**63 - 1 - 1000 - 2)  # every digit
    assert page.run(told.format("parent")) == "candidate 3 of chunk 0"
    page.run('document.querySelector(\'.node[data-index="0"][data-row="0"]\').focus()')
    assert page.run(told.format("fused")) == "none"
    assert page.run(told.format("route")) == "kept as a new sink"


def test_arrow_keys_walk_from_child_to_parent_and_back(server, page):
    three_chunks(server)
    watch(page, server, 12)
    page.run('document.querySelector(\'.node[data-index="2"][data-row="1"]\').focus()')
    here = "(({index, row}) => index + ' ' + row)(document.activeElement.dataset)"
    seen = []
    for key in ("ArrowDown", "ArrowLeft", "ArrowLeft", "ArrowRight", "ArrowUp"):
        page.press(key)
        seen.append(page.run(here))
    assert seen == ["2 2", "1 2", "0 3", "1 2", "1 1"]
    assert count(page, ".node[tabindex='0']") == 1  # Tab enters and leaves the tree in one step


def test_the_tree_grows_and_a_settled_chunk_is_marked_later(server, page):
    job = three_chunks(server)
    watch(page, server, 12)
    server.tell(job, turn(3), settled(1, 2), {"event": "switched", "chunk": 4, "prompt": EVIL})
    page.wait("document.querySelectorAll('.node').length == 16")
    page.wait("document.querySelectorAll('.node[data-fate=settled]').length == 2")
    server.tell(job, turn(4))
    page.wait("document.querySelector('.scene') !== null")
    assert EVIL in page.run("document.getElementById('scenes').textContent")
    assert page.run("document.getElementById('progress').value") == pytest.approx(2 / 6)
    assert page.run("document.title") != "owned"


def test_the_video_plays_while_it_is_made(server, page, film):
    job = three_chunks(server)
    job.pieces.extend(film[:2])
    watch(page, server, 12)
    buffered = (
        "(b => b.length ? b.end(b.length - 1) : 0)(document.getElementById('video').buffered)"
    )
    page.wait(f"{buffered} >= 0.99")
    assert page.run(buffered) < 1.1
    page.wait("document.getElementById('video').currentTime > 0")
    job.pieces.extend(film[2:])
    job.video["status"] = "completed"
    job.whole = True
    page.wait(f"{buffered} >= 1.99")
    page.wait(
        "document.getElementById('video').duration < 2.1"
    )  # the end is known: the file was whole
    assert page.errors == []


def test_a_stream_that_breaks_goes_on_where_it_was(server, page, film):
    job = three_chunks(server)
    job.pieces.extend(film)
    job.whole = True
    job.breaks = 1
    watch(page, server, 12)
    video = "document.getElementById('video')"
    page.wait(f"{video}.buffered.length == 1 && {video}.buffered.end(0) >= 1.99")
    assert job.breaks == 0


def test_a_browser_without_media_sources_is_told_and_gets_the_finished_file(server, page, film):
    job = three_chunks(server)
    job.pieces.extend(film)
    page.call("Page.addScriptToEvaluateOnNewDocument", source="delete window.MediaSource")
    watch(page, server, 12)
    page.wait("document.getElementById('screen-note').textContent.includes('cannot play')")
    server.tell(job, {"event": "done", "frames": 48, "bytes": 10, "seconds": 2.0, "degraded": []})
    page.wait("document.getElementById('video').src.endsWith('/content')")
    page.wait("document.getElementById('video').duration > 1.9")


def test_a_new_prompt_is_sent_to_the_running_job(server, page):
    job = three_chunks(server)
    watch(page, server, 12)
    page.wait("!document.querySelector('#switch button').disabled")
    page.run("document.getElementById('switch-prompt').focus()")
    page.type("a blue star")
    page.press("Enter")
    page.wait("document.getElementById('switch-note').textContent.includes('Asked')")
    until(lambda: job.heard)
    assert job.heard == [{"prompt": "a blue star"}]
    server.tell(job, {"event": "switched", "chunk": 5, "prompt": "a blue star"})
    page.wait("document.getElementById('switch-note').textContent.includes('chunk 5')")


def test_a_prompt_is_text_and_nothing_else(server, page):
    server.job("a", EVIL, status="failed", error={"code": "x", "message": EVIL}, degraded=[EVIL])
    page.open(server.url("videos/a"))
    page.wait("document.querySelector('h1').textContent.length > 0")
    assert page.run("document.querySelector('h1').textContent") == EVIL
    assert page.run("document.getElementById('problem').textContent") == EVIL
    page.open(server.url())
    page.wait("document.querySelectorAll('.jobs li').length == 1")
    assert page.run("document.querySelector('.jobs .prompt').textContent") == EVIL
    assert count(page, "main script, .jobs img, h1 img") == 0
    assert page.run("document.title") == "Videos - Stream-T1"
    assert not any(address.endswith("/x") for address in page.requests)


def test_a_failed_job_says_why_and_an_interrupted_one_goes_on(server, page):
    job = three_chunks(server)
    watch(page, server, 12)
    assert page.run("document.getElementById('problem').hidden")
    server.tell(job, {"event": "failed", "reason": "no room on the disk", "resumable": True})
    page.wait("!document.getElementById('problem').hidden")
    assert page.run("document.getElementById('problem').textContent") == "no room on the disk"
    assert page.run("document.getElementById('state').textContent") == "interrupted"
    # The server was started again, and the snapshot was of chunk 0: what came after is made anew.
    server.tell(job, began(6), turn(1, (0, 1)))
    page.wait("document.getElementById('problem').hidden")
    page.wait("document.querySelectorAll('.node').length == 8")
    server.tell(job, {"event": "failed", "reason": "the reward raised twice", "resumable": False})
    page.wait("document.getElementById('state').textContent == 'failed'")
    assert page.run("document.getElementById('switch').hidden")


def test_a_degraded_job_says_what_was_survived(server, page):
    job = three_chunks(server)
    watch(page, server, 12)
    assert page.run("document.getElementById('degraded').hidden")
    why = ["chunk 2: the image reward was late"]
    server.tell(job, {"event": "done", "frames": 1, "bytes": 1, "seconds": 1.0, "degraded": why})
    page.wait("document.querySelectorAll('#degraded li').length == 1")
    page.wait(
        "document.querySelector('.node[data-fate=alive]') === null"
    )  # nothing is open any more
    assert page.run("document.getElementById('state').textContent") == "done, degraded"


def test_a_broken_connection_is_made_again_and_nothing_is_drawn_twice(server, page):
    job = three_chunks(server)
    watch(page, server, 12)
    page.run("window.first = document.querySelector('.node')")
    server.cut(job)
    until(lambda: job.connections == 2)
    server.tell(job, turn(3))
    page.wait("document.querySelectorAll('.node').length == 16")
    assert page.run("document.querySelector('.node') === window.first")
    assert count(page, ".lines path") == 12


def test_two_hundred_chunks_cost_what_is_in_view(server, page):
    job = server.job("a", "long")
    job.events.extend([began(200), *(turn(i, (0, 31), rows=32) for i in range(200))])
    page.open(server.url("videos/a"))
    page.wait("document.querySelector('.node[data-index=\"199\"]') !== null")
    assert count(page, ".node") < 1000  # of 6,400
    assert count(page, ".node[data-index='199']") == 24  # the best of 32
    assert (
        count(page, ".node[data-index='199'][data-row='31']") == 1
    )  # a survivor, with the least score
    assert "8 pruned" in page.run("document.querySelector('.more').textContent")
    page.run("document.getElementById('tree').scrollLeft = 0")
    page.wait("document.querySelector('.node[data-index=\"0\"]') !== null")
    page.wait("document.querySelector('.node[data-index=\"199\"]') === null")
    server.tell(job, turn(200, rows=32))
    page.wait("document.getElementById('progress-words').textContent.includes('201 drawn')")
    assert (
        page.run("document.getElementById('tree').scrollLeft") == 0
    )  # a reader is not thrown about


def test_a_finished_job_without_events_is_drawn_from_its_trace(server, page, film):
    job = server.job("a", "a red circle", status="completed")
    job.pieces.extend(film)
    job.whole = True
    told = [turn(0), turn(1)]
    for chunk in told:
        for one in chunk["candidates"]:
            one["thumbnail"] = one["thumbnail"].split(",")[1]
    seeds = [told[0]["candidates"][0]["seed"], told[1]["candidates"][0]["seed"]]
    job.trace = {"planned_chunks": 2, "chunks": told, "path": seeds}
    page.open(server.url("videos/a"))
    page.wait("document.querySelector('.node') === null && document.querySelector('h1') !== null")
    until(lambda: job.sockets)
    server.cut(job)
    page.wait("document.querySelectorAll('.node').length == 8")
    assert count(page, ".node[data-fate=settled]") == 2
    assert job.connections == 1  # nothing more will come


def test_the_form_orders_a_video_and_goes_to_it(server, page):
    page.open(server.url())
    page.wait("document.querySelector('textarea') !== null")
    page.run("document.querySelector('textarea').focus()")
    page.type("a green ring")
    page.run("document.querySelector('[name=histories]').value = 3")
    page.run("document.querySelector('[name=policy]').value = 'beam'")
    page.run("document.getElementById('new').requestSubmit()")
    page.wait("location.pathname == '/videos/ordered'")
    search = {"policy": "beam", "histories": 3, "expansions": 2}
    assert server.ordered == [{"prompt": "a green ring", "seconds": "5", "search": search}]


def test_a_video_is_stopped_and_deleted_by_the_second_click(server, page):
    three_chunks(server)
    watch(page, server, 12)
    page.run("document.getElementById('remove').click()")
    assert "Really" in page.run("document.getElementById('remove').textContent")
    assert server.deleted == []
    page.run("document.getElementById('remove').click()")
    page.wait("location.pathname == '/'")
    assert server.deleted == ["a"]


def test_a_key_is_asked_for_until_it_is_the_right_one(server, page):
    server.key = "open sesame"
    three_chunks(server)
    page.open(server.url("videos/a"))
    for tried, wrong in (("nonsense", "false"), ("open sesame", "true")):
        page.wait(
            f"document.getElementById('key').open && !document.getElementById('key-wrong').hidden == {wrong}"
        )
        page.wait("document.activeElement.id == 'key-value'")
        page.type(tried)
        page.press("Enter")
    page.wait("document.querySelectorAll('.node').length == 12")
    assert not page.run("document.getElementById('key').open")
    assert not any("sesame" in address for address in page.requests)
    assert (
        page.run("document.cookie + JSON.stringify({...localStorage, ...sessionStorage})") == "{}"
    )

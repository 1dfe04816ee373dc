"""The page in a browser against the server's own application, with a worker that needs no model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed")
pytest.importorskip("websockets", reason="the server's packages are not installed")

from runtime.serve.app import build_app
from runtime.serve.options import ServeOptions
from tests.chromium import Browser, Page, browser, executable
from tests.fake_worker import FakeWorker
from tests.http_thread import serving_app

pytestmark = pytest.mark.skipif(executable() is None, reason="there is no Chromium on this machine")

KEY = "open sesame"
NODES = "document.querySelectorAll('.node').length"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, FakeWorker]]:
    """Its address, and a worker that makes the first two chunks only when it is told to."""
    worker = FakeWorker(held=True)
    app = build_app(worker, ServeOptions(folder=tmp_path_factory.mktemp("data"), key=KEY))
    with serving_app(app) as address:
        yield address, worker


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    try:
        with browser() as running:
            yield running
    except RuntimeError as error:
        pytest.skip(f"Chromium does not run here: {error}")


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    with chromium.page() as tab:
        tab.size(1280, 900)
        yield tab


def enter(page: Page, address: str) -> None:
    """Through the form that a browser without a key gets instead of the page."""
    page.open(address)
    page.wait("document.activeElement?.type == 'password'")
    page.type(KEY)
    page.press("Enter")
    page.wait("document.querySelector('textarea') !== null", 20)
    page.errors.clear()  # a 401 is one


def test_a_video_from_the_form_to_its_end(server, page):
    address, worker = server
    enter(page, address)
    page.run("document.querySelector('textarea').focus()")
    page.type("a <b>red</b> disc")
    page.run("document.getElementById('new').requestSubmit()")
    page.wait("location.pathname.startsWith('/videos/video_')")
    page.wait("document.querySelector('h1').textContent == 'a <b>red</b> disc'")
    page.wait("document.getElementById('state').textContent == 'waiting'")
    page.wait("!document.querySelector('#switch button').disabled")  # connected
    page.run("document.getElementById('switch-prompt').value = 'a blue disc'")
    page.run("document.getElementById('switch').requestSubmit()")
    page.wait("document.getElementById('scenes').textContent.includes('a blue disc')")
    worker.free()
    page.wait("document.getElementById('state').textContent == 'done'")
    page.wait(f"{NODES} == 4 * 7")  # 5 s are seven chunks
    page.wait("document.querySelectorAll('.node[data-fate=settled]').length == 7")
    page.wait("(b => b.length && b.end(0) > 4.9)(document.getElementById('video').buffered)")
    assert page.errors == []


def test_what_the_server_refuses_is_said_in_its_words(server, page):
    enter(page, server[0])
    page.run("document.querySelector('textarea').value = 'a red disc'")
    page.run("document.querySelector('[name=histories]').value = 17")
    page.run("document.getElementById('new').requestSubmit()")
    page.wait("document.getElementById('new-error').textContent.includes('at most 16')")

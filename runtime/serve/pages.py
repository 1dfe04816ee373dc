"""The page that shows the search: exactly the files in page/, under a policy that lets them load nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path as Folder
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from runtime.serve.auth import root_of
from runtime.serve.errors import ApiError
from runtime.serve.jobs import ID
from runtime.serve.service import Served, Service

KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
router = APIRouter(include_in_schema=False)


def page_files() -> Mapping[str, bytes]:
    """Name -> content of the page's files, read once."""
    folder = Folder(__file__).parent / "page"
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return {path.name: path.read_bytes() for path in found if path.suffix in KINDS}


@router.get("/")
async def index(request: Request, service: Served) -> Response:
    """The list of videos."""
    base = f'<base href="{root_of(request)}/">'.encode()
    whole = _file(service, "index.html").replace(b'<base href="/">', base)
    return Response(whole, media_type=KINDS[".html"], headers=HEADERS)


@router.get("/videos/{name}")
async def video(
    name: Annotated[str, Path(pattern=ID)], request: Request, service: Served
) -> Response:
    """One video's search; the script sees which from its address."""
    return await index(request, service)


@router.get("/page/{name}")
async def file(name: str, service: Served) -> Response:
    """A script or a style."""
    content = _file(service, name)
    return Response(content, media_type=KINDS[Folder(name).suffix], headers=HEADERS)


def _file(service: Service, name: str) -> bytes:
    if name not in service.page:
        raise ApiError(404, "there is no such page", code="not_found")
    return service.page[name]

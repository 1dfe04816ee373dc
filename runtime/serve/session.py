"""POST /v1/session: how a browser, which cannot give a <video> a header, gets in."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from runtime.serve.auth import COOKIE, COOKIE_S, bearer, root_of, unauthorised
from runtime.serve.reading import form_of
from runtime.serve.service import Served

router = APIRouter()


@router.post("/v1/session", status_code=204, summary="Exchange the key for a cookie")
async def enter(request: Request, service: Served) -> Response:
    """The key comes as a Bearer token, or as the field ``key`` of a form; the cookie is HttpOnly and lasts 12 hours."""
    keyring = service.keyring
    by_form = request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")  # fmt: skip
    if by_form:
        key = dict(await form_of(request, service.options.bounds)).get("key", "")
    else:
        key = bearer(request)
    if not keyring.fits(key):
        return unauthorised(request)
    root = root_of(request)
    answer = RedirectResponse(f"{root}/", 303) if by_form else Response(status_code=204)
    if not keyring.open:
        answer.set_cookie(
            COOKIE, keyring.cookie(), max_age=COOKIE_S, path=f"{root}/", httponly=True,
            samesite="strict", secure=request.url.scheme == "https",
        )  # fmt: skip
    return answer

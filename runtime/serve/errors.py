"""What a client is told when something is wrong: one shape, OpenAI's, without paths and tracebacks."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
# Where pydantic looked: a part of the request, or a member of a union.
UNSAID = ("body", "query", "path", "header", "float", "int", "bool", "str", "constrained-str")
MESSAGE_CHARACTERS = 1000
FOLDERS = re.compile(r"(?<![\w.:/])(?:/[^\s/:'\",;()]+)+/(?=[^\s/])")


class ApiError(Exception):
    """An answer that is not the one the client hoped for; ``status`` is HTTP's."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message[:MESSAGE_CHARACTERS]
        self.code, self.param = code, param
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(retry_after_s)
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"

    @property
    def body(self) -> dict[str, Any]:
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "")
        named = {"type": kind or "invalid_request_error", "code": self.code, "param": self.param}
        return {"error": {"message": self.message, **named}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


def wrong(param: str, message: str, code: str = "invalid_value") -> ApiError:
    """The caller's mistake in one field."""
    return ApiError(400, f"{param}: {message}", code=code, param=param)


def not_found(name: str) -> ApiError:
    return ApiError(404, f"there is no video {name[:48]!r}", code="video_not_found")


def sanitised(text: str) -> str:
    """A reason as a client may read it: one line, names of files without their folders."""
    return FOLDERS.sub("", " ".join(text.split()))[:MESSAGE_CHARACTERS]


def guess(name: str, known: Iterable[str]) -> str:
    """``; did you mean ...?``, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def told(problems: Sequence[Mapping[str, Any]], known: Iterable[str]) -> ApiError:
    """One of pydantic's problems as our error: a misspelt name before what is missing for it.

    ``known`` are the names that fields have.
    """
    unknown = (problem for problem in problems if problem["type"] == "extra_forbidden")
    problem = next(unknown, problems[0])
    where = [str(part) for part in problem["loc"] if part not in UNSAID]
    param = ".".join(where) or "body"
    if problem["type"] == "extra_forbidden":
        return wrong(param, f"no such field{guess(where[-1], known)}", "unknown_field")
    if problem["type"] == "missing":
        return wrong(param, "is missing", "missing_field")
    return wrong(param, problem["msg"][:1].lower() + problem["msg"][1:])


def install(app: FastAPI) -> None:
    """Give every error of ``app`` this shape."""

    async def ours(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error.response()

    async def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        answer = ApiError(error.status_code, str(error.detail)).response()
        answer.headers.update(error.headers or {})
        return answer

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        problems = error.errors()
        if any(problem["loc"][0] == "path" for problem in problems):
            return not_found(str(next(iter(request.path_params.values()), ""))).response()
        return told(problems, ()).response()

    app.add_exception_handler(ApiError, ours)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)

"""The JSON API and the page's files, as a Klein application. docs/api.rst is its manual.

Every path answers GET alone, changes nothing, and fails as ``{"error": "one line"}``.
"""

from __future__ import annotations

import functools
import gzip
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
from klein import Klein
from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from llama import __version__
from llama.http.errors import add_errors
from llama.http.server import json_error, plain, set_json, takes_gzip
from llama.web.answers import Answers, MatrixQuestion, NotFoundError, TooWideError
from llama.web.flows import FlowSource, UnknownCollectorError
from llama.web.incidents import IncidentSource
from llama.web.params import MAX_LIMIT, MAX_SPAN_S, Arguments, read_range
from llama.web.store import StoreError, StoreTimeoutError, TooMuchError

_log = Logger()

#: The page may load from here and nowhere else, and nothing may frame it.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

#: Answers of so many octets are packed for whoever takes them so: a big matrix has a megabyte.
PACK_FROM = 4096

#: The page's files: name, media type. Nothing else can be read.
STATIC = {
    path.name: kind
    for path in sorted((Path(__file__).parent / "static").glob("*"))
    if (
        kind := {
            ".html": "text/html; charset=utf-8",
            ".css": "text/css; charset=utf-8",
            ".js": "text/javascript; charset=utf-8",
            ".svg": "image/svg+xml",
        }.get(path.suffix)
    )
}

Answer = Callable[["WebApi", Any, Arguments], Awaitable[dict[str, Any]]]


def _json(answer: Answer) -> Callable[[WebApi, Any], Awaitable[bytes]]:
    """Make a route of a method that returns what is to be sent as JSON."""

    @functools.wraps(answer)
    async def route(self: WebApi, request: Any) -> bytes:
        try:
            said = await answer(self, request, Arguments(request))
        except TooWideError as error:
            return json_error(request, 400, str(error))
        except (NotFoundError, UnknownCollectorError) as error:
            return json_error(request, 404, str(error))
        except TooMuchError as error:
            return json_error(request, 507, str(error))
        except StoreTimeoutError as error:
            return json_error(request, 504, str(error))
        except StoreError as error:
            return json_error(request, 502, str(error))
        except CancelledError:
            return json_error(request, 503, "the service is stopping")
        set_json(request)
        body = orjson.dumps(said)
        if len(body) < PACK_FROM or not takes_gzip(request):
            return body
        request.setHeader("Content-Encoding", "gzip")
        request.setHeader("Vary", "Accept-Encoding")
        return await self._answers.in_thread(gzip.compress, body, 1)

    return route


class WebApi:
    """The routes. ``answers`` speak for the store, ``flows`` for the collectors themselves."""

    app = Klein()

    def __init__(self, answers: Answers, flows: FlowSource, incidents: IncidentSource) -> None:
        self._answers = answers
        self._flows = flows
        self._incidents = incidents
        self._static = Path(__file__).parent / "static"

    def resource(self) -> Any:
        """Return the application as a Twisted web resource."""
        return self.app.resource()

    # --- the page ----------------------------------------------------------------------------

    @app.route("/", methods=["GET"])
    def page(self, request: Any) -> bytes:
        """Answer with the page."""
        return self._file(request, "index.html")

    @app.route("/static/<name>", methods=["GET"])
    def static(self, request: Any, name: str) -> bytes:
        """Answer with one of the page's files."""
        return self._file(request, name)

    def _file(self, request: Any, name: str) -> bytes:
        if name not in STATIC:
            return json_error(request, 404, f"nothing is served at /static/{name}")
        request.setHeader("Content-Type", STATIC[name])
        request.setHeader("Content-Security-Policy", PAGE_POLICY)
        request.setHeader("Cache-Control", "no-cache")
        return (self._static / name).read_bytes()

    @app.route("/status", methods=["GET"])
    def alive(self, request: Any) -> bytes:
        """Answer that the service is there."""
        return plain(request)

    # --- the API -----------------------------------------------------------------------------

    @app.route("/api/v1/status", methods=["GET"])
    @_json
    async def status(self, request: Any, args: Arguments) -> dict[str, Any]:
        """Answer how fresh the data are."""
        said = await self._answers.status()
        return {**said, "flows": self._flows.configured, "version": __version__}

    @app.route("/api/v1/dimensions", methods=["GET"])
    @_json
    async def dimensions(self, request: Any, args: Arguments) -> dict[str, Any]:
        """Answer what can be chosen."""
        return await self._answers.dimensions(args.number("at", 0, 1e11))

    @app.route("/api/v1/matrix", methods=["GET"])
    @_json
    async def matrix(self, request: Any, args: Arguments) -> dict[str, Any]:
        """Answer with the matrix of one moment."""
        return await self._answers.matrix(_matrix_question(args))

    @app.route("/api/v1/pairs", methods=["GET"])
    @_json
    async def pairs(self, request: Any, args: Arguments) -> dict[str, Any]:
        """Answer with pairs of hosts, the worst first."""
        offset = args.whole("cursor", 0, high=10**9)
        limit = args.whole("limit", 100, low=1, high=MAX_LIMIT)
        return await self._answers.pairs(_matrix_question(args), offset, limit)

    @app.route("/api/v1/history", methods=["GET"])
    @_json
    async def history(self, request: Any, args: Arguments) -> dict[str, Any]:
        """Answer with one pair's figures over time."""
        window, step_s = read_range(args, self._answers.now_s())
        src, dst = args.required("src"), args.required("dst")
        return await self._answers.history(window, step_s, src, dst, args.filters())

    @app.route("/api/v1/timeline", methods=["GET"])
    @_json
    async def timeline(self, request: Any, args: Arguments) -> dict[str, Any]:
        """Answer how the whole mesh did over time."""
        window, step_s = read_range(args, self._answers.now_s())
        return await self._answers.timeline(window, step_s, args.filters())

    @app.route("/api/v1/flows", methods=["GET"])
    @_json
    async def flows(self, request: Any, args: Arguments) -> dict[str, Any]:
        """Answer with the flows of a pair, as its collector still has them."""
        src, dst = args.required("src"), args.required("dst")
        return await self._flows.flows(src, dst, args.filters(), args.number("at", 0, 1e11))

    @app.route("/api/v1/incidents", methods=["GET"])
    @_json
    async def incidents(self, request: Any, args: Arguments) -> dict[str, Any]:
        """Answer with incidents, the newest first."""
        limit = args.whole("limit", 100, low=1, high=MAX_LIMIT)
        at = args.number("at", 0, 1e11)
        return await self._incidents.incidents(at, args.text("cursor"), limit)

    add_errors(app, _log)


def _matrix_question(args: Arguments) -> MatrixQuestion:
    return MatrixQuestion(
        metric=args.metric(),
        at_s=args.number("at", 0, 1e11),
        span_s=args.number("span", 0, MAX_SPAN_S) or 0.0,
        where=args.filters(),
        group=args.group(),
        rows=args.opened("rows"),
        cols=args.opened("cols"),
    )

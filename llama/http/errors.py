"""What every application of Klein's answers that cannot answer: JSON, as `llama.http.server` does."""

from __future__ import annotations

from typing import Any

from klein import Klein
from twisted.logger import Logger
from twisted.python.failure import Failure
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from llama.http.server import BadRequestError, json_error, wrong_method


def add_errors(app: Klein, log: Logger) -> None:
    """Give a class's ``app`` the answers to errors that none of its own handlers has taken by then.

    So it comes after them. What is a mistake of ours goes to ``log``.
    """

    @app.handle_errors(BadRequestError)
    def bad_request(self: Any, request: Any, failure: Failure) -> bytes:
        return json_error(request, 400, str(failure.value))

    @app.handle_errors(MethodNotAllowed)
    def not_allowed(self: Any, request: Any, failure: Failure) -> bytes:
        return wrong_method(request, failure.value.valid_methods)  # type: ignore[union-attr]

    @app.handle_errors(HTTPException)
    def not_found(self: Any, request: Any, failure: Failure) -> bytes:
        asked = request.path.decode(errors="replace")
        return json_error(request, 404, f"nothing is served at {asked}")

    @app.handle_errors(Exception)
    def failed(self: Any, request: Any, failure: Failure) -> bytes:
        log.failure("{path} could not be answered", failure, path=request.path)
        return json_error(request, 500, "this request met a mistake of ours; see the log")

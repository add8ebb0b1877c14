"""Pinpointing over HTTP: suspects now, incidents, silences; JSON for programs."""

from __future__ import annotations

import secrets
from math import isinf
from typing import Any, Protocol

import orjson
from attrs import asdict
from klein import Klein
from twisted.logger import Logger

from llama.http.errors import add_errors
from llama.http.host import asked_by_this_machine
from llama.http.server import (
    BadRequestError,
    Query,
    json_error,
    plain,
    set_json,
)
from llama.pinpoint.fleet import Fleet
from llama.pinpoint.incidents import Incident, Incidents, Silence
from llama.pinpoint.judgement import Judgement
from llama.pinpoint.sighting import Sighting
from llama.pinpoint.windows import Measured

MOST_OCTETS = 10_000  # of a silence
MOST_SILENCES = 1000
DAY_S = 86_400.0
#: So many paths that changed are listed among the incidents, by their time.
AMONG = 4

_log = Logger()


def sighting_json(sighting: Sighting) -> dict[str, Any]:
    """Return a suspect for programs, without the numbers of its flows."""
    hidden = ("flows", "hit", "places")
    return {**asdict(sighting, filter=lambda a, _: a.name not in hidden), "hit": len(sighting.hit)}


def incidents_at(
    incidents: Incidents, at_s: float | None, cursor: str | None, limit: int
) -> dict[str, Any]:
    """Return the incidents as of a Unix time (None: now), open ones first, then the newest.

    Paths that changed come last, but for the `AMONG` newest.

    ``{"configured": True, "incidents": [...], "total": n, "next": cursor or None}``. Raises
    `BadRequestError` for a cursor that is none.
    """
    every: list[Incident] = [*incidents.open, *reversed(incidents.ended)]
    if at_s is not None:
        every = [one for one in every if (one.opened or one.start) <= at_s]
    once = [one for one in incidents.once if at_s is None or one.start <= at_s]
    # With when each was over by then.
    listed = [(one, one.end) for one in once[:AMONG]]
    listed += [
        (one, None if at_s is not None and (one.end or 0) > at_s else one.end) for one in every
    ]
    listed.sort(key=lambda each: (each[1] is not None, -each[0].start))
    listed += [(one, one.end) for one in once[AMONG:]]
    if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 8):
        raise BadRequestError(f"cursor={cursor[:40]}: not one of ours")
    begin = int(cursor or 0)
    end = begin + limit
    return {
        "configured": True,
        "incidents": [{**asdict(one), "end": over} for one, over in listed[begin:end]],
        "total": len(listed),
        "next": str(end) if end < len(listed) else None,
    }


class Pinpointing(Protocol):
    """What is served: the state of a `llama.pinpoint.service.PinpointService`."""

    measured: Measured
    incidents: Incidents
    judgement: Judgement | None
    fleet: Fleet

    @property
    def now_s(self) -> float:
        """Unix time, s."""

    def save(self) -> None:
        """Keep what was changed."""


class PinpointApi:
    """Serves incidents and suspects: ``api.app.resource()`` is the root for an `HttpService`.

    ``guarded`` says that only who has shown a token gets this far.
    """

    app = Klein()

    def __init__(self, service: Pinpointing, *, guarded: bool) -> None:
        self._service = service
        self._guarded = guarded

    @app.route("/status", methods=["GET"])
    def _status(self, request: Any) -> bytes:
        return plain(request)

    @app.route("/suspects", methods=["GET"])
    def _suspects(self, request: Any) -> bytes:
        service, judgement = self._service, self._service.judgement
        answer: dict[str, Any] = {
            "collectors": [
                {"url": source.url, "problem": source.told or None}
                for source in service.fleet.sources
            ],
            "paths_known": len(service.measured.paths),
            "end": None,
            "suspects": [],
        }
        if judgement is not None:
            verdict = judgement.verdict
            answer |= {
                "end": judgement.end_s,
                "data": judgement.data,
                "flows": verdict.flows,
                "judged": verdict.judged,
                "lossy": verdict.lossy,
                "unexplained": verdict.unexplained,
                "excluded": verdict.excluded,
                "suspects": [sighting_json(sighting) for sighting in judgement.sightings],
            }
        return self._json(request, answer)

    @app.route("/incidents", methods=["GET"])
    def _incidents(self, request: Any) -> bytes:
        query = Query(request)
        at = query.whole("at", -1)
        limit = query.whole("limit", 100, low=1, high=1000)
        return self._json(
            request,
            incidents_at(
                self._service.incidents, None if at < 0 else at, query.text("cursor"), limit
            ),
        )

    @app.route("/silences", methods=["GET"])
    def _silences(self, request: Any) -> bytes:
        now_s, silences = self._service.now_s, self._service.incidents.silences
        told = [asdict(silence) for silence in silences if silence.end > now_s]
        return self._json(request, {"silences": told})

    @app.route("/silences", methods=["POST"])
    def _silence(self, request: Any) -> bytes:
        """Add a silence: ``{"tag", "value", "seconds" or "end", "begin", "comment"}``."""
        if refused := self._may_not_change(request):
            return refused
        # Another origin's page cannot send this type without asking first.
        # As octets: what is no UTF-8 could not be had as text.
        if (request.getHeader(b"content-type") or b"").split(b";")[0] != b"application/json":
            raise BadRequestError("expected Content-Type: application/json")
        silence = read_silence(request.content.read(MOST_OCTETS + 1), self._service.now_s)
        incidents = self._service.incidents
        if len(incidents.silences) >= MOST_SILENCES:
            incidents.prune_silences(self._service.now_s)
        if len(incidents.silences) >= MOST_SILENCES:
            raise BadRequestError(f"there are {MOST_SILENCES:,} silences already: delete some")
        incidents.silences.append(silence)
        self._service.save()
        _log.info("silenced: {silence}", silence=silence)
        return self._json(request, asdict(silence), 201)

    @app.route("/silences/<number>", methods=["DELETE"])
    def _speak(self, request: Any, number: str) -> bytes:
        if refused := self._may_not_change(request):
            return refused
        silences = self._service.incidents.silences
        for silence in silences:
            if silence.id == number:
                silences.remove(silence)
                self._service.save()
                return self._json(request, asdict(silence))
        return json_error(request, 404, f"no silence {number[:40]}")

    def _may_not_change(self, request: Any) -> bytes | None:
        """Return the refusal of a change by whoever has shown no token and may not be of this machine."""
        if self._guarded or asked_by_this_machine(request):
            return None
        return json_error(
            request, 403,
            "changes take a token (--api-token-file), or a program of this machine that asks for"
            " 127.0.0.1 or localhost",
        )  # fmt: skip

    @staticmethod
    def _json(request: Any, answer: Any, code: int = 200) -> bytes:
        set_json(request, code)
        return orjson.dumps(answer, option=orjson.OPT_APPEND_NEWLINE)

    add_errors(app, _log)


def read_silence(body: bytes, now: float) -> Silence:
    """Return the silence that a request asks for; `BadRequestError` says what is wrong with it."""
    if len(body) > MOST_OCTETS:
        raise BadRequestError("a silence is shorter than that")
    try:
        wanted = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise BadRequestError("the body is no JSON") from None
    if not isinstance(wanted, dict):
        raise BadRequestError("expected an object with tag, value and seconds")
    unknown = set(wanted) - {"tag", "value", "seconds", "begin", "end", "comment"}
    if unknown:
        raise BadRequestError(f"unknown: {', '.join(sorted(unknown))}")
    for name in ("tag", "value"):
        if not isinstance(wanted.get(name), str) or not wanted[name]:
            raise BadRequestError(f"{name}: expected text")

    def seconds(name: str, default: float) -> float:
        value = wanted.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadRequestError(f"{name}: expected seconds as a number")
        return float(value)

    begin = seconds("begin", now)
    end = seconds("end", begin + seconds("seconds", DAY_S))
    if end <= max(begin, now):
        raise BadRequestError("it would be over before it begins")
    if isinf(end):
        raise BadRequestError("it would never be over")
    comment = wanted.get("comment", "")
    if not isinstance(comment, str) or len(comment) > 1000:
        raise BadRequestError("comment: expected text of at most 1,000 characters")
    return Silence(
        id=secrets.token_hex(4), tag=wanted["tag"], value=wanted["value"], begin=begin, end=end,
        comment=comment,
    )  # fmt: skip

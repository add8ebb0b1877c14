"""`PinpointService`: reads collectors after every interval, judges, keeps incidents, announces them.

What it must not forget over a restart (incidents, silences, announcements that nobody took yet)
is one JSON file, replaced atomically after every judgement that changed it. It is for its owner
alone, and so is a new record of judgements.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import takewhile
from math import ceil
from pathlib import Path
from typing import Any

import orjson
from attrs import asdict, field, frozen
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.logger import Logger, LogLevel

from llama.http.server import HttpService
from llama.pinpoint import api
from llama.pinpoint.evidence import Thresholds
from llama.pinpoint.files import append_line, private
from llama.pinpoint.fleet import Fleet
from llama.pinpoint.incidents import Event, Hysteresis, Incidents
from llama.pinpoint.judgement import Judgement, judge
from llama.pinpoint.webhook import Webhook
from llama.pinpoint.windows import KEEP, Measured
from llama.reasons import Reasons
from llama.threads import DaemonThreads

STATE_VERSION = 1
#: Timeouts of probes are never longer, s: what did not close then closes no more.
LONGEST_TIMEOUT_S = 60.0
#: Reasons for which nothing can be judged that the log names.
MOST_TOLD = 8
#: So soon it is looked again whether the rest of an interval is there, s; each time twice as long.
PAUSE_S = 2.0


@frozen(kw_only=True)
class Settings:
    """What a `PinpointService` is told."""

    collectors: tuple[str, ...]  # base URLs
    interval_s: float = 30.0  # the collectors'
    #: How long after an interval's end it is judged: timeouts must have run out, and the collectors
    #: had time to trace what died. Longer timeouts are waited for.
    settle_s: float = 4.0
    api: str | None = "tcp:5004:interface=127.0.0.1"
    api_token: str | None = field(default=None, repr=False)
    collector_token: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    webhooks: tuple[str, ...] = field(default=(), repr=False)  # URLs, which are secrets
    state: Path | None = None  # None: nothing survives a restart
    record: Path | None = None  # every judgement, one JSON object a line
    thresholds: Thresholds = field(factory=Thresholds)
    hysteresis: Hysteresis = field(factory=Hysteresis)


class PinpointService(MultiService):
    """Says where a network loses, while it runs. ``name`` names the addresses of hops."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        name: Callable[[str], str] = str,
        unix_time_s: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self.settings = settings
        waiting_s = LONGEST_TIMEOUT_S + settings.settle_s
        keep = KEEP + ceil(waiting_s / settings.interval_s)
        self.measured = Measured(keep, name, settings.interval_s)
        self.incidents = Incidents(settings.hysteresis)
        self.judgement: Judgement | None = None
        self.fleet = Fleet(
            reactor,
            settings.collectors,
            self.measured,
            timeout_s=min(10.0, settings.interval_s / 2),
            turn_s=settings.interval_s,
            token=settings.collector_token,
            ca_file=settings.ca_file,
        )
        self.webhooks = [Webhook(reactor, url) for url in settings.webhooks]
        self._reactor = reactor
        self._threads = DaemonThreads(reactor)
        self._now_s = unix_time_s
        self._call: Any = None
        self._reading: Deferred[None] | None = None
        self._saved = b""
        self._no_data = Reasons()  # why there is nothing to judge
        self._unwritten: defaultdict[Path, Reasons] = defaultdict(Reasons)  # why files cannot be
        self._judged_s = 0.0  # the end of the interval that was judged last
        self._taken_s = 0.0  # likewise, whose judgement is among the incidents
        self._looked_s = 0.0  # the end of the interval that was looked for last
        self._partial: set[float] = set()  # ends of intervals of which not all is there
        self._pause_s = 0.0  # until it is looked again; 0: nothing is waited for
        self.http: HttpService | None = None
        if settings.api:
            self.http = HttpService(
                reactor,
                settings.api,
                api.PinpointApi(self, guarded=bool(settings.api_token)).app.resource(),
                what="llama pinpoint",
                token=settings.api_token,
            )
            self.http.setServiceParent(self)

    @property
    def now_s(self) -> float:
        """Unix time, s."""
        return self._now_s()

    def startService(self) -> None:
        """Remember, then read and judge after every interval."""
        self._restore()
        super().startService()
        for webhook in self.webhooks:
            webhook.go_on()
        self._schedule()

    def stopService(self) -> Deferred[Any]:
        """Stop reading and announcing, and save what is open."""
        base: Any = super().stopService() or succeed(None)  # first: else what is cancelled goes on
        if self._call is not None:
            self._call.cancel()
            self._call = None
        reading = self._reading
        if reading is not None:
            reading.cancel()
        stopping = [webhook.stop() for webhook in self.webhooks]
        stopping.append(Deferred.fromCoroutine(self.fleet.stop()))
        waiting: Deferred[Any] = gatherResults(stopping, consumeErrors=True)
        waiting.addBoth(lambda _: self.save())
        return waiting.addCallback(lambda _: base)

    def _schedule(self) -> None:
        """Wait for the next interval's end and the time to settle, or for the rest of the last."""
        length, settle = self.settings.interval_s, self.settings.settle_s
        now = self._now_s()
        end = (now - settle) // length * length
        due = end + length + settle
        if self._pause_s and now + self._pause_s < due:
            self._call = self._reactor.callLater(self._pause_s, self._turn, end)
        else:
            self._call = self._reactor.callLater(max(0.0, due - now), self._turn, due - settle)

    def _turn(self, end_s: float) -> None:
        self._call = None
        reading = Deferred.fromCoroutine(self._judge(end_s))
        self._reading = reading
        reading.addBoth(self._turned)

    def _turned(self, result: Any) -> None:
        self._reading = None
        if self.running:
            if result is not None:
                self.log.failure("an interval could not be judged", failure=result)
            self._schedule()

    async def _judge(self, end_s: float) -> None:
        """Read, and judge what ended at `end_s` or before, each interval once and in order.

        That is when all of it is there: when all collectors that are waited for have handed in their
        last group. One that was waited for is judged at the next look, and those after it not
        before: what died is traced then.
        """
        if end_s < self._looked_s - 1.5 * self.settings.interval_s:
            self._set_back(end_s)
        self.measured.due_s = end_s
        await self.fleet.read()
        if not self.running:  # it may have been read to the end just then
            return
        ends = sorted({*self.measured.ends, end_s})
        self._give_up(end_s, again=end_s > self._looked_s)
        self._looked_s = max(end_s, self._looked_s)
        unjudged = [end for end in ends if self._judged_s < end <= end_s]
        whole = [end for end in unjudged if self.fleet.whole(end)]
        ready = list(takewhile(lambda end: end not in self._partial, whole))
        self._partial = set(unjudged) - set(whole)
        if len(ready) < len(whole):
            self._pause_s = PAUSE_S
        else:
            self._pause_s = (2 * self._pause_s or PAUSE_S) if self._partial else 0.0
        if not self.measured.judged_s:
            ready = ready[-1:]  # of those before not all may have been read
        for end in ready:
            self._judged_s = self.measured.judged_s = end
            self.take(await self._judgement(end))
        self.measured.forget(self._sure_s(end_s))

    def _sure_s(self, now_s: float) -> float:
        """Return a time that is not ahead of all collectors', as a clock may be for a moment."""
        told = (end for source in self.fleet.sources for end in source.ends)
        return min(now_s, max([*self.measured.ends, *told], default=0.0))

    def _judgement(self, end_s: float) -> Deferred[Judgement]:
        """Judge in a thread: that may take seconds, and who asks meanwhile is answered."""
        return self._threads.call(judge, self.measured, end_s, self.settings.thresholds)

    def _set_back(self, end_s: float) -> None:
        """Go on from where the wall clock was set back to: what ended later is going to end again."""
        self.measured.forget_after(end_s)
        held_s = max(self.measured.ends, default=0.0)
        self._judged_s = self.measured.judged_s = min(self._judged_s, held_s)
        self._taken_s = min(self._taken_s, held_s)
        self._looked_s = 0.0
        self._partial = set()

    def _give_up(self, end_s: float, again: bool) -> None:
        """Wait for nobody who lacks an interval of which the longest timeout has run out."""
        length_s = self.measured.length_s
        if length_s:
            last_s = self._now_s() - LONGEST_TIMEOUT_S - self.settings.settle_s
            self.fleet.give_up(last_s // length_s * length_s, end_s, again)

    def newest_s(self) -> float | None:
        """Return when the newest whole interval ended, or else the newest; None without any."""
        ends = self.measured.ends
        if ends:
            self._give_up(ends[-1], again=True)
        return next(filter(self.fleet.whole, reversed(ends)), ends[-1] if ends else None)

    def take(self, judgement: Judgement) -> list[Event]:
        """Let a judgement open, change and close incidents; announce that, and save it."""
        self.judgement = judgement
        self._say_data(judgement)
        self._taken_s = judgement.end_s
        self.incidents.prune_silences(self._sure_s(self._now_s()))
        events = self.incidents.judged(
            judgement.sightings, judgement.end_s, judgement.data, judgement.measured.tolist()
        )
        for reroute in judgement.reroutes:
            events += self.incidents.told(reroute, judgement.end_s)
        for event in events:
            self.log.emit(
                LogLevel.warn if event.event in ("opened", "changed") else LogLevel.info,
                "incident {id} {event}: {title}; {evidence}",
                id=event.incident["id"],
                event=event.event,
                title=event.incident["title"],
                evidence=event.incident["evidence"],
            )
            for webhook in self.webhooks:
                webhook.announce(event)
        self.save()
        self._write_record(judgement, events)
        return events

    def _say_data(self, judgement: Judgement) -> None:
        """Say once that nothing can be judged, and why as far as that is known, and that it can again."""
        if judgement.data:
            if self._no_data.over():
                self.log.info("there is something to judge again")
            return
        reasons = judgement.verdict.excluded[:MOST_TOLD] or ("no collector has handed in anything",)
        # Whichever collectors it is of, and however late they are: that changes all the time.
        if self._no_data.is_news(re.sub("[0-9]+", "0", reasons[0].rpartition(": ")[2])):
            self.log.warn("there is nothing to judge: {why}", why="; ".join(reasons))

    def _write_record(self, judgement: Judgement, events: Sequence[Event]) -> None:
        if self.settings.record is None:
            return
        line = {
            "time": self._now_s(),
            "end": judgement.end_s,
            "flows": judgement.verdict.flows,
            "judged": judgement.verdict.judged,
            "lossy": judgement.verdict.lossy,
            "unexplained": judgement.verdict.unexplained,
            "excluded": judgement.verdict.excluded,
            "paths": len(self.measured.paths),
            "suspects": [api.sighting_json(sighting) for sighting in judgement.sightings],
            "events": [asdict(event) for event in events],
        }
        try:
            append_line(self.settings.record, json.dumps(line).encode() + b"\n")
        except OSError as e:  # a full disk is no reason not to judge
            self._not_written(self.settings.record, e)
        else:
            self._written(self.settings.record)

    def _not_written(self, path: Path, error: OSError) -> None:
        """Say why a file cannot be written, unless that was said."""
        why = error.strerror or str(error)
        if self._unwritten[path].is_news(why):
            self.log.error("{path}: cannot be written: {why}", path=str(path), why=why)

    def _written(self, path: Path) -> None:
        """Say so of a file that could not be written before."""
        if self._unwritten[path].over():
            self.log.info("{path} is written again", path=str(path))

    # What survives

    def save(self) -> None:
        """Write the state, if there is a file for it and it changed."""
        if self.settings.state is None:
            return
        state = {
            "version": STATE_VERSION,
            "incidents": orjson.Fragment(self.incidents.octets()),
            "waiting": {webhook.digest: list(webhook.waiting) for webhook in self.webhooks},
        }
        octets = orjson.dumps(state)
        if octets == self._saved:
            return
        path = self.settings.state
        new = path.with_name(path.name + ".new")
        try:
            new.unlink(missing_ok=True)  # one that was left may be open to others
            with open(new, "xb", opener=private) as file:
                file.write(orjson.dumps({**state, "judged_s": self._taken_s}))
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except OSError as e:
            self._not_written(path, e)
            return
        self._saved = octets
        self._written(path)

    def _restore(self) -> None:
        """Read the state; one that makes no sense is put aside and said.

        Raises `OSError` for one that is there and cannot be read: it must not be replaced then.
        """
        path = self.settings.state
        if path is None:
            return
        try:
            octets = path.read_bytes()
        except FileNotFoundError:
            return
        try:
            record = orjson.loads(octets)
            if record["version"] != STATE_VERSION:
                raise ValueError(f"version {record['version']}, expected {STATE_VERSION}")
            incidents = Incidents.from_json(record["incidents"], self.settings.hysteresis)
            waiting = [
                # Earlier versions kept it under the URL itself.
                [e for name in (one.digest, one.url) for e in record["waiting"].get(name, [])]
                for one in self.webhooks
            ]
            # What its cases have counted is not counted again.
            judged_s = min(float(record.get("judged_s", 0.0)), self._now_s())
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            self.log.error(
                "{path}: {why}; begun anew, {kept}",
                path=str(path),
                why=" ".join(str(e).split()),
                kept=_put_aside(path),
            )
            return
        self.incidents, self._judged_s, self._taken_s = incidents, judged_s, judged_s
        for webhook, events in zip(self.webhooks, waiting, strict=True):
            webhook.waiting.extend(events)


def _put_aside(path: Path) -> str:
    """Rename a state that makes no sense, and say what became of it."""
    aside = path.with_name(path.name + ".unreadable")
    try:
        path.replace(aside)
    except OSError as error:
        return f"and the old file cannot be renamed to {aside}: {error.strerror}"
    with suppress(OSError):  # which only its owner may; then it stays as open as it was
        aside.chmod(0o600)
    return f"the old file is now {aside}"

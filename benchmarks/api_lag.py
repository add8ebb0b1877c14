"""How far the collector's HTTP side delays everything else: tick lag before and during its work.

``python -m benchmarks.api_lag`` prints JSON. A tick every 5 ms stands for the prober; its lag is
how late it comes. Intervals of 10,000 pairs with 16 flows each close every few seconds, and then,
besides, another process asks for everything without pause, packed and plain. Memory is what the
held intervals take, every one with arrays of its own. On a machine that is busy with other things,
``chrt -f 1`` before the command (as root) keeps their delays out of the figures.
"""

from __future__ import annotations

import argparse
import gc
import http.client
import multiprocessing
import os
import resource
import sys
import time
from typing import Any

import attrs
import numpy as np
import orjson
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import deferLater

from llama.collector.answers.api import CollectorApi
from llama.collector.answers.history import History
from llama.collector.intervals.summary import ClosedInterval
from llama.http.server import HttpService
from llama.testing import closed_interval, pair

TICK_S = 0.005
PATHS = (
    "/influxdata",
    "/influxdata?since=",
    "/latency",
    "/metrics",
    "/",
    "/flows?limit=10000",
    "/flows?lossy=1",
)


class Ticks:
    """Notes how late each tick of a steady beat comes."""

    def __init__(self) -> None:
        self.lags_s: list[float] = []
        self._due = time.perf_counter() + TICK_S
        reactor.callLater(TICK_S, self._tick)

    def _tick(self) -> None:
        now = time.perf_counter()
        self.lags_s.append(now - self._due)
        self._due = max(self._due + TICK_S, now)  # a missed beat is one late tick
        reactor.callLater(max(0.0, self._due - time.perf_counter()), self._tick)

    def take(self) -> dict[str, float]:
        """Return the lags since the last call, in milliseconds."""
        lags, self.lags_s = np.array(self.lags_s) * 1e3, []
        p50, p99, p999, most = np.percentile(lags, [50, 99, 99.9, 100])
        return {
            "ticks": len(lags),
            "p50_ms": round(float(p50), 3),
            "p99_ms": round(float(p99), 3),
            "p99.9_ms": round(float(p999), 3),
            "p100_ms": round(float(most), 3),
        }


def _ask(port: int, counts: Any) -> None:
    """Ask for everything, again and again, until killed; runs in a process of its own."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    while True:
        for coding in ("gzip", "identity"):
            for number, path in enumerate(PATHS):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
                connection.request("GET", path, headers={"Accept-Encoding": coding})
                response = connection.getresponse()
                while response.read(1 << 20):
                    pass
                assert response.status == 200, (path, response.status)
                connection.close()
                counts[number] += 1


def _resident_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def _sleep(seconds: float) -> Deferred[None]:
    return deferLater(reactor, seconds, lambda: None)


async def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    members = [pair(n) for n in range(arguments.pairs)]

    def interval(number: int) -> ClosedInterval:
        return closed_interval(
            members, close_number=number, flows_per_pair=arguments.flows, loss=0.001
        )

    made = [interval(1), interval(2)]
    history = History(arguments.keep)
    api = CollectorApi(reactor, history, src_hostname="here")
    service = HttpService(reactor, "127.0.0.1:0", api.app.resource(), what="benchmark")
    service.startService()
    gc.collect()
    gc.freeze()

    def close() -> None:
        number = history.newest + 1
        end_ns = made[0].end_ns + number * 30_000_000_000
        history.append(
            attrs.evolve(
                made[number % 2],
                close_number=number,
                start_ns=end_ns - 30_000_000_000,
                end_ns=end_ns,
            )
        )

    result: dict[str, Any] = {
        "pairs": arguments.pairs,
        "flows": arguments.pairs * arguments.flows,
        "python": sys.version.split()[0],
    }
    ticks = Ticks()
    await _sleep(1)
    ticks.take()

    async def phase(name: str, closes: int) -> None:
        api._slices.take_longest_s()
        cpu = time.process_time()
        for _ in range(closes):
            close()
            await _sleep(arguments.seconds / closes)
        if not closes:
            await _sleep(arguments.seconds)
        result[name] = {
            **ticks.take(),
            "closes": closes,
            "longest_slice_ms": round(api._slices.take_longest_s() * 1e3, 3),
            "cpu_s": round(time.process_time() - cpu, 2),
        }

    await phase("idle", 0)
    await phase("closing", arguments.closes)
    context = multiprocessing.get_context("spawn")
    counts = context.Array("i", len(PATHS))
    client = context.Process(target=_ask, args=(service.port.getHost().port, counts), daemon=True)
    client.start()
    await _sleep(3)
    ticks.take()
    await phase("closing and asked", arguments.closes)
    result["answers"] = dict(zip(PATHS, counts, strict=True))
    client.kill()
    client.join()

    if arguments.memory:
        made.clear()
        history.held.clear()
        history._closed_of_window.clear()
        gc.collect()
        empty = _resident_mib()
        for _ in range(arguments.keep + 2):
            history.append(interval(history.newest + 1))
            while api._making or api._slices._background:
                await _sleep(0.05)
        gc.collect()
        result["memory"] = {
            "held_intervals": len(history.held),
            "packed_MiB": round(history.packed_octets / 2**20, 1),
            "resident_without_MiB": round(empty, 1),
            "resident_MiB": round(_resident_mib(), 1),
        }
    api.stop()
    await service.stopService()
    return result


def main() -> None:
    """Run, print JSON, end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--flows", type=int, default=16, help="of each pair")
    parser.add_argument("--keep", type=int, default=33, help="windows held")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each phase")
    parser.add_argument("--closes", type=int, default=4, help="intervals closed in each phase")
    parser.add_argument("--memory", action="store_true", help="fill the history, too (a minute)")
    arguments = parser.parse_args()

    def done(result: Any) -> None:
        if isinstance(result, dict):
            print(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode())
        else:
            result.printTraceback(sys.stderr)
        reactor.stop()

    reactor.callWhenRunning(lambda: ensureDeferred(_run(arguments)).addBoth(done))
    reactor.run()


if __name__ == "__main__":
    main()

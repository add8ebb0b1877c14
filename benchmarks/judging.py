"""What a flow costs `llama pinpoint` in every interval, to read and to judge, by how many there are.

``python -m benchmarks.judging HOSTS TARGETS`` prints JSON for one size: every host's collector measures
``TARGETS`` others over 16 flows each, and its answers are read as from the network. A third of the
flows are traced; one link loses a tenth, and must be named.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from attrs import frozen

from benchmarks import machine
from benchmarks.figures import Claim, Report, ratio
from benchmarks.programs import BenchmarkError
from llama.pinpoint import answers
from llama.pinpoint.judgement import judge
from llama.pinpoint.windows import PART, Measured
from llama.rfc3339 import utc_text

FLOWS, SENT = 16, 30  # of a pair, and probes of a flow in an interval
INTERVAL_S, FIRST_S = 30, 1_800_000_000
INTERVALS = 8  # of which the first are not counted: flows are new, and fewer are judged together
COUNTED = 2
RACK, SPINES = 20, 16
FAULT = "link spine3 -> leaf1"
SIZES = ((40, 25), (200, 50))  # hosts and targets: 16,000 and 160,000 flows
ROOT = Path(__file__).parent.parent


@frozen
class Fleet:
    """Hosts in racks, and what their collectors answer."""

    hosts: int
    targets: int

    @staticmethod
    def address(host: int) -> str:
        """Return the address of a host by number."""
        return f"10.{host >> 8}.{host & 255}.1"

    def _flows(self, host: int) -> Iterator[tuple[int, int, int]]:
        """Yield target, port and spine of each flow."""
        for n in range(self.targets):
            target = (host + 1 + n) % self.hosts
            for port in range(FLOWS):
                yield target, port, (host * 7 + target * 3 + port * 5) % SPINES

    def _pair(self, host: int, target: int) -> dict[str, Any]:
        return {
            "target": f"h{target}",
            "src_ip": self.address(host),
            "dst_ip": self.address(target),
            "dst_port": 8100,
            "dscp": 0,
            "probe": "stamp",
            "size_octets": 96,
            "port_group": "default",
        }

    def pairs(self, host: int) -> bytes:
        """Return the pairs of ``/latency``."""
        tags = {"src_hostname": f"h{host}", "src_rack": f"r{host // RACK}"}
        rows = [
            {
                **self._pair(host, target),
                "tags": {**tags, "dst_hostname": f"h{target}", "dst_rack": f"r{target // RACK}"},
            }
            for target in dict.fromkeys(target for target, _, _ in self._flows(host))
        ]
        return orjson.dumps(rows)

    def flows(self, host: int, end_s: int, random: np.random.Generator) -> bytes:
        """Return the flows of ``/flows``."""
        begin, end = (utc_text(t * 10**9) for t in (end_s - INTERVAL_S, end_s))
        rows = []
        for target, port, spine in self._flows(host):
            lossy = f"link spine{spine} -> leaf{target // RACK}" == FAULT
            rows.append(
                {
                    **self._pair(host, target),
                    "source_port": 30_000 + port,
                    "ssid": 1,
                    "interval_start": begin,
                    "interval_end": end,
                    "sent": SENT,
                    "lost_forward": int(random.binomial(SENT, 0.1)) if lossy else 0,
                    "lost_reverse": 0,
                    "lost_unknown": 0,
                    "remarked_forward": 0,
                    "remarked_reverse": 0,
                    "dscp_at_reflector": 0,
                    "rtt_p50_ms": 0.1 + 0.01 * random.random(),
                    "suspect": [],
                }
            )
        return orjson.dumps(rows)

    def paths(self, host: int, end_s: int) -> bytes:
        """Return the paths of ``/paths``."""
        rows = [
            {
                "dst_ip": self.address(target),
                "dst_port": 8100,
                "source_port": 30_000 + port,
                "dscp": 0,
                "size_octets": 96,
                "hops": [
                    f"leaf{host // RACK}", f"spine{spine}", f"leaf{target // RACK}",
                    self.address(target),
                ],
                "complete": True,
                "traced": end_s - 1,
                "reach": None,
            }
            for target, port, spine in self._flows(host)
            if (target + port) % 3 == 0
        ]  # fmt: skip
        return orjson.dumps(rows)


def measure(hosts: int, targets: int) -> dict[str, Any]:
    """Read and judge some intervals; return what that cost in each but the first."""
    fleet, measured, random = Fleet(hosts, targets), Measured(), np.random.default_rng(1)
    read_us, judged_us, count = [], [], hosts * targets * FLOWS
    before_mb = machine.resident_mb(os.getpid())
    for number in range(INTERVALS):
        end_s = FIRST_S + number * INTERVAL_S
        read_s = 0.0
        for host in range(hosts):
            url = f"http://h{host}:5000"
            if not number:
                pairs = answers.PairReader().read(orjson.loads(fleet.pairs(host)))
                measured.pairs.add(url, pairs)
            body = fleet.flows(host, end_s, random)
            began_s = time.process_time()
            page = orjson.loads(body)
            rows = [r for n in range(0, len(page), PART) for r in answers.flows(page[n : n + PART])]
            answers.one_interval(rows)
            measured.add_flows(url, rows)
            read_s += time.process_time() - began_s
            if not number:
                measured.add_paths(url, answers.paths(orjson.loads(fleet.paths(host, end_s))))
        measured.due_s = end_s
        began_s = time.process_time()
        judgement = judge(measured, end_s)
        judged_us.append((time.process_time() - began_s) / count * 1e6)
        read_us.append(read_s / count * 1e6)
        measured.judged_s = end_s
        measured.forget(end_s)
        named = [sighting.key for sighting in judgement.sightings]
        if named[:1] != [FAULT]:
            raise BenchmarkError(f"{FAULT} loses, and {named or 'nobody'} is named")
    memory_mb = machine.resident_mb(os.getpid()) - before_mb
    return {
        "flows": count,
        "µs CPU/flow, read": statistics.median(read_us[-COUNTED:]),
        "judged": statistics.median(judged_us[-COUNTED:]),
        "kB/flow": memory_mb / count * 1e3,
    }


def run(rounds: int) -> Report:
    """Measure every size, each in a process of its own."""
    rows: list[list[dict[str, Any]]] = []
    for _ in range(rounds):
        rows.append([])
        for size in SIZES:
            command = [sys.executable, "-m", "benchmarks.judging", *map(str, size)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                said = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
                raise BenchmarkError(said[-1])
            rows[-1].append(json.loads(done.stdout))
    shown = []
    for some in zip(*rows, strict=True):
        row = {name: statistics.median(one[name] for one in some) for name in some[0]}
        cost_us = row["µs CPU/flow, read"] + row["judged"]
        row["core % at 30 s"] = 100 * cost_us * row["flows"] / 1e6 / INTERVAL_S
        shown.append(row)

    def cost(which: int) -> list[float]:
        return [one[which]["µs CPU/flow, read"] + one[which]["judged"] for one in rows]

    return Report(
        "Pinpointing, every flow in every interval",
        tuple(shown[0]),
        tuple(shown),
        (
            ratio("µs per flow, of 160,000 / of 16,000", cost(-1), cost(0), "<= 1.5"),
            Claim("core % with 160,000 flows", shown[-1]["core % at 30 s"], "<= 50"),
        ),
        (f"16 flows a pair, a third of them traced; {FAULT} loses 10 %, and is named each time.",),
    )


if __name__ == "__main__":
    try:
        print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]))))
    except BenchmarkError as error:
        sys.exit(str(error))

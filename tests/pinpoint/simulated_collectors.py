"""Collectors over HTTP whose measurements come from a simulated fabric, with the truth known."""

import json
from datetime import UTC, datetime

import numpy as np
from klein import Klein
from simulated_fabric import Simulation
from twisted.internet import reactor
from twisted.web.server import Site

from llama.collector.intervals.summary import reasons
from llama.config.dscp import class_name

INTERVAL_S = 10
FIRST_END_S = 1_700_000_000


def utc(seconds):
    """Return RFC 3339."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Collectors:
    """One web server a host of `fabric`; `step` closes the next interval everywhere.

    With `late` classes, these close an interval under a number of their own when `close_late` says.
    """

    late = ()
    slow_host, slow_s = None, 0  # whose clock is behind, and how far

    def __init__(self, fabric, seed=1, **traffic):
        self.fabric = fabric
        self.racks = dict(fabric.hosts)  # as their configuration says
        self.incarnation = ""
        self.simulation = Simulation(fabric, np.random.default_rng(seed), **traffic)
        self.names = self.simulation.hosts.names
        self.number = 0
        self.window = None
        self.groups = []  # (close number, end, classes or None for all) as `/flows` lists them
        self.down = set()
        self.twists = {}  # host -> what makes another document, or octets, of each that it answers
        self.failing = ""  # what is in the URIs that fail; "": none does
        self.asked = []
        self.ports = [
            reactor.listenTCP(0, Site(_collector(self, n).resource()), interface="127.0.0.1")
            for n in range(len(self.names))
        ]

    @property
    def urls(self):
        """The base URLs, by host."""
        return tuple(f"http://127.0.0.1:{port.getHost().port}" for port in self.ports)

    @property
    def end_s(self):
        """When the newest interval ended."""
        return FIRST_END_S + self.number * INTERVAL_S

    def step(self, *faults, sent=25):
        """Close an interval in which these faults were there."""
        self.number += 1
        self.window = self.simulation.window(faults, sent)
        if self.late:
            self._close([name for name in self.classes if name not in self.late])
        return self.end_s

    def close_late(self):
        """Close the interval for the late classes."""
        self._close(self.late)

    @property
    def classes(self):
        """The classes that are probed."""
        return sorted({class_name(int(dscp)) for dscp in self.simulation.flows["dscp"]})

    def _close(self, classes):
        number = 1 + max((group[0] for group in self.groups), default=0)
        self.groups.append((number, self.end_s, tuple(classes)))

    def closed(self):
        """Return what ``/flows`` says of the newest interval of every group, the newest first."""
        if not self.late:
            return [(self.number, self.end_s, None)]
        newest = {classes: (number, end, classes) for number, end, classes in self.groups}
        return sorted(newest.values(), reverse=True)

    def numbered(self, number):
        """Return the classes of an interval of the newest window by its number; None: not held."""
        held = self.closed() if not self.late else self.groups
        return next((one for one in held if one[0] == number and one[1] == self.end_s), None)

    async def stop(self):
        """Close all servers."""
        for port in self.ports:
            await port.stopListening()

    def address(self, host, family=4):
        """Return the address of a host by number."""
        of = self.fabric.ipv6_address if family == 6 else self.fabric.address
        return str(of(self.names[host]))

    def rows(self, host):
        """Return the flows of one host's collector as ``/flows`` gives them."""
        flows = self.window.flows
        mine = np.flatnonzero(flows["source"] == host)
        end_s = self.end_s - (self.slow_s if host == self.slow_host else 0)
        begin, end = utc(end_s - INTERVAL_S), utc(end_s)
        for n, flow in zip(mine.tolist(), flows[mine], strict=True):
            yield n, {
                **self.pair(flow),
                "source_port": 20000 + n % 40000,
                "interval_start": begin,
                "interval_end": end,
                **{
                    name: int(flow[name])
                    for name in (
                        "sent", "lost_forward", "lost_reverse", "lost_unknown",
                        "remarked_forward", "remarked_reverse",
                    )
                },
                "dscp_at_reflector": None if flow["remarked_to"] == 255 else int(flow["remarked_to"]),
                "rtt_p50_ms": 30.0 if flow["late"] else 0.2,
                "suspect": list(reasons(int(flow["suspect"]))),
            }  # fmt: skip

    def pair(self, flow):
        """Return what names the pair of a flow."""
        return {
            "target": self.names[flow["destination"]],
            "src_ip": self.address(flow["source"], flow["family"]),
            "dst_ip": self.address(flow["destination"], flow["family"]),
            "dst_port": 8100,
            "class": class_name(int(flow["dscp"])),
            "dscp": int(flow["dscp"]),
            "probe": "stamp",
            "size_octets": int(flow["size"]),
            "port_group": "default",
        }

    def paths(self, host):
        """Return the paths of one host's flows as ``/paths`` gives them."""
        start, link = self.window.paths.start, self.window.paths.link
        for n, row in self.rows(host):
            links = [self.window.paths.links[k] for k in link[start[n] : start[n + 1]].tolist()]
            if not links:
                continue
            answered = int(self.window.paths.answered[n])
            yield {
                **{k: row[k] for k in ("dst_ip", "dst_port", "source_port", "dscp", "size_octets")},
                "hops": [b for _, b in links[:-1]] + [row["dst_ip"]],
                "complete": True,
                "traced": self.end_s,
                "reach": answered if answered >= 0 else None,
            }


def _collector(fleet, host):
    app = Klein()

    def head():
        slow_s = fleet.slow_s if host == fleet.slow_host else 0
        return {
            "incarnation": f"{host}{fleet.incarnation}",
            "intervals": [
                {"close_number": number, "end": utc(end - slow_s), "all_flows": True}
                for number, end, _ in fleet.closed()
            ],
        }

    def answer(request, document):
        fleet.asked.append(request.uri.decode())
        if host in fleet.down or (fleet.failing and fleet.failing in request.uri.decode()):
            request.setResponseCode(503)
            return b'{"error": "down"}'
        document = fleet.twists.get(host, lambda _, same: same)(request, document)
        return document if isinstance(document, bytes) else json.dumps(document).encode()

    @app.route("/flows")
    def flows(request):
        offset = int(request.args.get(b"offset", [b"0"])[0])
        limit = int(request.args.get(b"limit", [b"1000"])[0])
        number = request.args.get(b"close_number")
        every = [row for _, row in fleet.rows(host)]
        if number:
            group = fleet.numbered(int(number[0]))
            if group is None:
                request.setResponseCode(404)
                return b'{"error": "not held"}'
            every = [row for row in every if group[2] is None or row["class"] in group[2]]
        some = every[offset : offset + limit]
        more = offset + limit if offset + limit < len(every) else None
        return answer(request, {**head(), "flows": some, "next_offset": more})

    @app.route("/latency")
    def latency(request):
        rack = fleet.racks
        pairs = {}
        for _, row in fleet.rows(host):
            tags = {
                "src_hostname": fleet.names[host], "dst_hostname": row["target"],
                "src_rack": rack[fleet.names[host]], "rack": rack[row["target"]],
            }  # fmt: skip
            pairs[row["target"], row["dscp"], row["size_octets"]] = {**row, "tags": tags}
        return answer(request, {**head(), "pairs": list(pairs.values())})

    @app.route("/paths")
    def paths(request):
        return answer(request, {"time": fleet.end_s, "paths": list(fleet.paths(host))})

    return app

"""The pure parts of the matrix: groups, sickness, folding, figures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from web_data import Fault, Fleet
from web_memory import MemoryStore

from llama.collector.intervals.summary import suspect_bit
from llama.web.fold import (
    NO_DATA,
    NO_VALUE,
    NOT_PROBED,
    VALUE,
    fold,
    lay_out,
    reduce_to_pairs,
)
from llama.web.groups import find_places, natural, read_paths
from llama.web.mesh import Health, Mesh, judge, make_mesh
from llama.web.metrics import ALWAYS, METRICS
from llama.web.present import numbers, sick, summary
from llama.web.present import pairs as pairs_told
from llama.web.store import Activity, Snapshot, Window

END_S = 1_750_000_200.0


def mesh_of(fleet: Fleet, metric: str = "loss", seconds: float = 1200, **changes: Any) -> Mesh:
    """Return the mesh of a fleet's newest moment."""
    store = MemoryStore(fleet.points(END_S - seconds, END_S))
    return mesh_at(store, metric, seconds, **changes)


def mesh_at(
    store: MemoryStore, metric: str = "loss", seconds: float = 1200, **changes: Any
) -> Mesh:
    """Return the mesh of the newest moment of a store."""
    activity = success(store.activity(Window(END_S - seconds, END_S)))
    columns = (*ALWAYS, *METRICS[metric].columns, "flows", "flows_lossy")
    snapshot = success(store.latest(Window(END_S - 120, END_S), columns))
    return make_mesh(snapshot, activity, changes.get("at_s", END_S))


def success(deferred: Deferred[Any]) -> Any:
    """Return the result of a Deferred that has one."""
    results: list[Any] = []
    deferred.addCallback(results.append)
    return results[0]


def fleet(*faults: Fault, hosts: int = 4, **more: Any) -> Fleet:
    """Return hosts h1, h2, ... two to a datacenter, with faults in force."""
    places = {f"h{n}": (f"dc{(n + 1) // 2}", f"r{n}") for n in range(1, hosts + 1)}
    return Fleet(hosts=places, classes=("BE",), faults=faults, **more)


def now(kind: str, **where: Any) -> Fault:
    """Return a fault of the last ten minutes."""
    return Fault(kind=kind, start_s=END_S - 600, **where)


class GroupsTest(SynchronousTestCase):
    """Where hosts stand."""

    def test_natural_order(self) -> None:
        """Numbers within names count as numbers; no group comes last."""
        names = ["r10", "r2", "", "a", "r2b", "2", "10", "R1", "²"]
        self.assertEqual(
            sorted(names, key=natural), ["2", "10", "R1", "a", "r2", "r2b", "r10", "²", ""]
        )

    def test_numbers_without_end(self) -> None:
        """A name may have more digits than Python reads as a number; nought may stand before it."""
        names = ["h" + "9" * 5000, "h1" + "0" * 5000, "h007", "h7", "h0", "h00", "h8"]
        want = ["h0", "h00", "h007", "h7", "h8", names[0], names[1]]
        self.assertEqual(sorted(names, key=natural), want)

    def test_destination(self) -> None:
        """A destination stands where dst_K says, else where plain K says."""
        places = find_places(
            [
                {"src_hostname": "a", "dst_hostname": "b", "rack": "1", "dst_rack": "2"},
                {"src_hostname": "a", "dst_hostname": "c", "rack": "3"},
            ]
        )
        self.assertEqual(places.destination_path("b", ["rack"]), ("2",))
        self.assertEqual(places.destination_path("c", ["rack"]), ("3",))

    def test_source(self) -> None:
        """A source stands where src_K says, else where others who probe it see it."""
        places = find_places(
            [
                {"src_hostname": "a", "dst_hostname": "b", "rack": "3", "src_rack": "1"},
                {"src_hostname": "b", "dst_hostname": "a", "rack": "9"},
                {"src_hostname": "c", "dst_hostname": "a", "rack": "9"},
            ]
        )
        self.assertEqual(places.source_path("a", ["rack"]), ("1",))
        self.assertEqual(places.source_path("b", ["rack"]), ("3",))
        self.assertEqual(places.source_path("c", ["rack"]), ("",))

    def test_hierarchy(self) -> None:
        """Known names come outermost first; tags that group nothing are left out."""
        series = [
            {
                "src_hostname": "x",
                "dst_hostname": f"h{n}",
                "rack": f"r{n % 4}",
                "datacenter": f"d{n % 2}",
                "serial": f"s{n}",
                "role": f"web{n % 3}",
                "owner": "us",
                "class": "BE",
                "dst_ip": f"10.0.0.{n}",
            }
            for n in range(8)
        ]
        places = find_places(series)
        self.assertEqual(places.keys(), ["datacenter", "rack", "role"])
        self.assertEqual(places.hierarchy(), ["datacenter", "rack"])

    @settings(max_examples=200)
    @given(st.sets(st.lists(st.text(max_size=5), min_size=1, max_size=3).map(tuple), max_size=5))
    def test_paths(self, paths: set[tuple[str, ...]]) -> None:
        """Any names survive being written into an address."""
        escapes = str.maketrans({"~": "~~", "/": "~s", ",": "~c", "*": "~a"})
        text = ",".join(
            "/".join(name.translate(escapes) or "~0" for name in path) for path in paths
        )
        self.assertEqual(read_paths(text), paths)


class HealthTest(SynchronousTestCase):
    """Hosts that are sick as a whole."""

    def sick(self, mesh: Mesh) -> dict[str, list[str]]:
        """Return hosts by what they are."""
        health = judge(mesh)
        return {
            "down": [mesh.destinations[n] for n in np.flatnonzero(health.down)],
            "blind": [mesh.sources[n] for n in np.flatnonzero(health.blind)],
            "silent": [mesh.sources[n] for n in np.flatnonzero(health.silent)],
        }

    def test_well(self) -> None:
        """Nobody is sick when nothing is lost."""
        self.assertEqual(self.sick(mesh_of(fleet())), {"down": [], "blind": [], "silent": []})

    def test_down(self) -> None:
        """Whom nobody reaches is down, and its sources are not blind."""
        said = self.sick(mesh_of(fleet(now("down", dst="h2"))))
        self.assertEqual(said, {"down": ["h2"], "blind": [], "silent": []})

    def test_a_dead_reflector(self) -> None:
        """Of a host that is down it is told whether its own collector reaches others."""
        for faults, told in (
            ((), {"reaches_others": True}),
            ((now("blind", src="h2"),), {}),
            ((now("silent", src="h2"),), {}),
        ):
            mesh = mesh_of(fleet(now("down", dst="h2"), *faults))
            down = [each for each in sick(mesh, judge(mesh)) if each["kind"] == "down"]
            self.assertEqual(down, [{"kind": "down", "host": "h2", **told}])

    def test_blind(self) -> None:
        """Who reaches nobody, though others do, is blind, and nobody is down."""
        said = self.sick(mesh_of(fleet(now("blind", src="h2"))))
        self.assertEqual(said, {"down": [], "blind": ["h2"], "silent": []})

    def test_down_and_blind(self) -> None:
        """Both at once are told apart."""
        said = self.sick(mesh_of(fleet(now("blind", src="h1"), now("down", dst="h4"))))
        self.assertEqual(said, {"down": ["h4"], "blind": ["h1"], "silent": []})

    def test_single_witness(self) -> None:
        """One source alone cannot tell a dead host from a dead path."""
        skip = frozenset({("h3", "h1"), ("h4", "h1")})
        said = self.sick(mesh_of(fleet(now("down", dst="h1"), skip=skip)))
        self.assertEqual(said["down"], [])

    def test_most_is_not_all(self) -> None:
        """A host that one source still reaches is not down."""
        faults = [now("down", src=src, dst="h1") for src in ("h2", "h3")]
        self.assertEqual(self.sick(mesh_of(fleet(*faults)))["down"], [])

    def test_everything_lost(self) -> None:
        """When everybody loses everything nobody is called blind: there is no one to compare with."""
        said = self.sick(mesh_of(fleet(now("down"))))
        self.assertEqual(said["blind"], [])
        self.assertEqual(said["down"], ["h1", "h2", "h3", "h4"])

    def test_silent(self) -> None:
        """A source that says nothing any more is silent since its last words."""
        mesh = mesh_of(fleet(now("silent", src="h3")))
        self.assertEqual(self.sick(mesh)["silent"], ["h3"])
        self.assertEqual(judge(mesh).silent_since_s[2], END_S - 600)

    def test_all_silent(self) -> None:
        """When the scraper stops, everybody is silent after some intervals, but not at once."""
        self.assertEqual(self.sick(mesh_of(fleet(), at_s=END_S + 100))["silent"], [])
        self.assertEqual(len(self.sick(mesh_of(fleet(), at_s=END_S + 400))["silent"]), 4)


class FoldTest(SynchronousTestCase):
    """Cells of open and closed groups."""

    def matrix(self, mesh: Mesh, opened: Any, metric: str = "loss") -> Any:
        """Return the cells by names of their row and column."""
        pairs = reduce_to_pairs(mesh, METRICS[metric], np.ones(len(mesh.series), dtype=bool))
        rows = lay_out(
            mesh.sources, [mesh.places.source_path(h, ["datacenter"]) for h in mesh.sources], opened
        )
        cols = lay_out(
            mesh.destinations,
            [mesh.places.destination_path(h, ["datacenter"]) for h in mesh.destinations],
            opened,
        )
        cells = fold(pairs, judge(mesh), rows, cols)

        def name(entry: Any) -> str:
            return entry.host or "/".join(entry.path)

        answer = {}
        for r, row in enumerate(rows.entries):
            for c, col in enumerate(cols.entries):
                n = r * len(cols.entries) + c
                answer[name(row), name(col)] = (
                    int(cells.state[n]),
                    None if math.isnan(cells.value[n]) else round(float(cells.value[n]), 4),
                    int(cells.members[n]),
                    int(cells.bad[n]),
                    int(cells.missing[n]),
                )
        return answer

    def test_open(self) -> None:
        """Every host is a row and a column; nobody probes itself."""
        cells = self.matrix(mesh_of(fleet(now("loss", src="h1", dst="h3", flows=16))), "all")
        self.assertEqual(len(cells), 16)
        self.assertEqual(cells["h1", "h3"], (VALUE, 25.0, 1, 1, 0))
        self.assertEqual(cells["h3", "h1"], (VALUE, 0.0, 1, 0, 0))
        self.assertEqual(cells["h1", "h1"], (NOT_PROBED, None, 0, 0, 0))

    def test_closed(self) -> None:
        """A closed cell has the worst of its members, and their number."""
        cells = self.matrix(mesh_of(fleet(now("loss", src="h1", dst="h3", flows=16))), "none")
        self.assertEqual(cells["dc1", "dc2"], (VALUE, 25.0, 4, 1, 0))
        self.assertEqual(cells["dc1", "dc1"], (VALUE, 0.0, 2, 0, 0))

    def test_half_open(self) -> None:
        """Groups open one by one."""
        cells = self.matrix(mesh_of(fleet()), frozenset({("dc2",)}))
        self.assertEqual({row for row, _ in cells}, {"dc1", "h3", "h4"})

    def test_dead_drop_out(self) -> None:
        """A dead host does not paint the cells of its group; a group of the dead is dead."""
        cells = self.matrix(mesh_of(fleet(now("down", dst="h3"))), "none")
        self.assertEqual(cells["dc1", "dc2"], (VALUE, 0.0, 2, 0, 0))
        both = fleet(now("down", dst="h3"), now("down", dst="h4"))
        self.assertEqual(self.matrix(mesh_of(both), "none")["dc1", "dc2"][1], 100.0)

    def test_no_data(self) -> None:
        """No data is a state of its own, below any value in a closed cell."""
        mesh = mesh_of(fleet(now("mute", src="h1", dst="h3")))
        self.assertEqual(self.matrix(mesh, "all")["h1", "h3"], (NO_DATA, None, 1, 0, 1))
        self.assertEqual(self.matrix(mesh, "none")["dc1", "dc2"], (VALUE, 0.0, 4, 0, 1))

    def test_not_sent(self) -> None:
        """Nor are there data of what its source could not send; what it had no turn for is no fault."""
        places = {f"h{n}": (f"dc{(n + 1) // 2}", f"r{n}") for n in range(1, 5)}
        for name, state, partial in (("EF", VALUE, 1), (None, NO_DATA, 0)):
            unsent = now("unsent", src="h1", dst="h3", class_name=name)
            mesh = mesh_of(Fleet(hosts=places, faults=(unsent,)))
            value = 0.0 if state == VALUE else None
            self.assertEqual(self.matrix(mesh, "all")["h1", "h3"], (state, value, 1, 0, 1))
            pairs = reduce_to_pairs(mesh, METRICS["loss"], np.ones(len(mesh.series), dtype=bool))
            said = summary(pairs, pairs, mesh, judge(mesh))
            self.assertEqual((said["healthy"], said["missing"], said["partial"]), (11, 1, partial))
            mesh.columns["suspect"][:] = 0
            pairs = reduce_to_pairs(mesh, METRICS["loss"], np.ones(len(mesh.series), dtype=bool))
            self.assertEqual(np.count_nonzero(pairs.silent), 0)

    def test_partly_silent(self) -> None:
        """A class that fell silent does not hide behind the one that speaks."""
        mute = now("mute", src="h1", dst="h3", class_name="EF")
        places = {f"h{n}": (f"dc{(n + 1) // 2}", f"r{n}") for n in range(1, 5)}
        mesh = mesh_of(Fleet(hosts=places, faults=(mute,)))
        self.assertEqual(self.matrix(mesh, "all")["h1", "h3"], (VALUE, 0.0, 1, 0, 1))
        self.assertEqual(self.matrix(mesh, "none")["dc1", "dc2"], (VALUE, 0.0, 4, 0, 1))
        pairs = reduce_to_pairs(mesh, METRICS["loss"], np.ones(len(mesh.series), dtype=bool))
        said = summary(pairs, pairs, mesh, judge(mesh))
        self.assertEqual((said["healthy"], said["missing"], said["partial"]), (11, 1, 1))
        first = pairs_told(METRICS["loss"], mesh, pairs, np.flatnonzero(pairs.silent))
        self.assertEqual([(it["src"], it["dst"], it["series"], it["silent"]) for it in first],
                         [("h1", "h3", 2, 1)])  # fmt: skip
        only = reduce_to_pairs(mesh, METRICS["loss"], mesh.where({"class": "BE"}))
        self.assertEqual(summary(only, only, mesh, judge(mesh))["missing"], 0)

    def test_bad_and_missing(self) -> None:
        """A pair of which a class loses and another is silent is one pair, and hides no other."""
        faults = (
            now("loss", src="h1", dst="h2", class_name="EF"),
            now("mute", src="h1", dst="h2", class_name="BE"),
            now("down", src="h3", dst="h4"),  # in no known direction: no figure
        )
        hosts = {f"h{n}": ("dc", f"r{n}") for n in range(1, 5)}
        mesh = mesh_of(Fleet(hosts=hosts, faults=faults), "loss_forward")
        everything = mesh.where({})
        pairs = reduce_to_pairs(mesh, METRICS["loss_forward"], everything)
        losses = reduce_to_pairs(mesh, METRICS["loss"], everything)
        said = summary(pairs, losses, mesh, judge(mesh))
        counts = {name: said[name] for name in ("pairs", "healthy", "unjudged", "troubled")}
        self.assertEqual(counts, {"pairs": 12, "healthy": 10, "unjudged": 1, "troubled": 2})
        self.assertEqual((said["bad"], said["losing"], said["missing"]), (1, 2, 1))

    def test_mostly_silent(self) -> None:
        """A folded cell says how many of its pairs have no data, and of how many series."""
        gone = [now("mute", src=src, dst=dst) for src, dst in
                (("h1", "h3"), ("h1", "h4"), ("h2", "h3"))]  # fmt: skip
        mesh = mesh_of(fleet(*gone))
        self.assertEqual(self.matrix(mesh, "none")["dc1", "dc2"], (VALUE, 0.0, 4, 0, 3))
        pairs = reduce_to_pairs(mesh, METRICS["loss"], np.ones(len(mesh.series), dtype=bool))
        self.assertEqual(summary(pairs, pairs, mesh, judge(mesh))["missing"], 3)

    def test_replaced(self) -> None:
        """A series that goes on under other tags has not fallen silent."""
        before = fleet(now("silent"))
        moved = {**before.hosts, "h3": ("dc1", "r9")}
        after = Fleet(hosts=moved, classes=("BE",))
        store = MemoryStore(before.points(END_S - 1200, END_S))
        store.add(after.points(END_S - 600, END_S))
        mesh = mesh_at(store)
        self.assertEqual(len(mesh.series), 12)
        self.assertEqual(self.matrix(mesh, "none")["dc1", "dc1"], (VALUE, 0.0, 6, 0, 0))

    def test_no_value(self) -> None:
        """Where nothing came back there is no RTT: that is neither no data nor zero."""
        mesh = mesh_of(fleet(now("down", src="h1", dst="h3")), "rtt_p99")
        self.assertEqual(self.matrix(mesh, "all", "rtt_p99")["h1", "h3"], (NO_VALUE, None, 1, 0, 0))

    def test_automatic(self) -> None:
        """So many groups open by themselves as can be looked at."""
        few = [f"h{n}" for n in range(40)]
        many = [f"h{n}" for n in range(400)]
        paths = [(f"d{n % 4}", f"r{n % 40}") for n in range(400)]
        self.assertEqual(len(lay_out(few, paths[:40], "auto").entries), 40)
        self.assertEqual(len(lay_out(many, paths, "auto").entries), 40)  # racks
        wide = [(f"d{n % 4}", f"r{n % 100}") for n in range(400)]
        self.assertEqual(len(lay_out(many, wide, "auto").entries), 4)
        self.assertEqual(len(lay_out(many, [()] * 400, "auto").entries), 400)
        self.assertEqual(lay_out([], [], "auto").entries, [])

    @settings(max_examples=40)
    @given(st.data())
    def test_any_folding(self, data: st.DataObject) -> None:
        """However it is folded, each visible cell is the worst of its members, counted by hand."""
        hosts = data.draw(st.integers(2, 5))
        values = data.draw(
            st.lists(
                st.sampled_from([0.0, 0.5, 7.0, 100.0, None]), min_size=hosts**2, max_size=hosts**2
            )
        )
        group = data.draw(st.lists(st.sampled_from("ab"), min_size=hosts, max_size=hosts))
        opened = data.draw(st.sampled_from(["all", "none", frozenset({("a",)})]))
        series = [
            {"src_hostname": f"h{r}", "dst_hostname": f"h{c}", "g": group[c], "src_g": group[r]}
            for r in range(hosts)
            for c in range(hosts)
        ]
        heard = np.array([value is not None for value in values])
        lost = np.array([value if value is not None else np.nan for value in values])
        columns = {"sent": np.where(heard, 100.0, np.nan), "received": 100.0 - lost, "lost": lost,
                   "suspect": np.zeros(len(series))}  # fmt: skip
        kept = np.flatnonzero(heard)
        snapshot = Snapshot(
            [series[n] for n in kept],
            np.full(kept.size, END_S),
            {name: column[kept] for name, column in columns.items()},
        )
        full = np.full(len(series), END_S)
        mesh = make_mesh(snapshot, Activity(series, full, np.full(len(series), 30.0)), None)
        nobody = np.zeros(hosts, dtype=bool)
        health = Health(nobody, nobody, nobody, np.zeros(hosts), nobody)
        pairs = reduce_to_pairs(mesh, METRICS["loss"], np.ones(len(series), dtype=bool))
        axis = lay_out(mesh.sources, [(group[int(h[1:])],) for h in mesh.sources], opened)
        cells = fold(pairs, health, axis, axis)
        for r in range(len(axis.entries)):
            for c in range(len(axis.entries)):
                members = [
                    values[a * hosts + b]
                    for a in range(hosts)
                    for b in range(hosts)
                    if axis.of_host[a] == r and axis.of_host[b] == c
                ]
                known = [value for value in members if value is not None]
                n = r * len(axis.entries) + c
                self.assertEqual(cells.members[n], len(members))
                self.assertEqual(cells.missing[n], len(members) - len(known))
                self.assertEqual(cells.bad[n], sum(value >= 0.1 for value in known))
                if known:
                    self.assertEqual(cells.value[n], max(known))
                else:
                    self.assertTrue(math.isnan(cells.value[n]))


class MetricsTest(SynchronousTestCase):
    """Figures from columns."""

    def one(self, metric: str, **columns: float) -> float:
        """Return one value."""
        arrays = {name: np.array([value], dtype=float) for name, value in columns.items()}
        return float(METRICS[metric].value(arrays)[0])

    def test_loss(self) -> None:
        """Nothing sent is no loss value."""
        self.assertEqual(self.one("loss", sent=200, lost=3), 1.5)
        self.assertTrue(math.isnan(self.one("loss", sent=0, lost=0)))

    def test_direction(self) -> None:
        """Loss in an unknown direction makes neither direction's loss known to be zero."""
        known = {"sent": 100.0, "lost_forward": 0.0, "lost_unknown": 0.0}
        self.assertEqual(self.one("loss_forward", **known), 0.0)
        self.assertTrue(math.isnan(self.one("loss_forward", **{**known, "lost_unknown": 5.0})))
        both = {**known, "lost_unknown": 5.0, "lost_forward": 2.0}
        self.assertEqual(self.one("loss_forward", **both), 2.0)

    def test_mean_for_median(self) -> None:
        """Other collectors know only a mean, which then stands for the median."""
        value = self.one("rtt_p50", received=5, rtt=3.0, rtt_p50=math.nan)
        self.assertEqual(value, 3.0)

    def test_remarked(self) -> None:
        """Both directions together, and unknown where neither is known."""
        value = self.one("remarked", received=50, remarked_forward=5, remarked_reverse=math.nan)
        self.assertEqual(value, 10.0)
        nothing = {"remarked_forward": math.nan, "remarked_reverse": math.nan}
        self.assertTrue(math.isnan(self.one("remarked", received=50, **nothing)))

    def test_levels(self) -> None:
        """Levels separate 0, 0.1, 1, 10 and 100 %."""
        values = np.array([0, 0.01, 0.1, 0.99, 1, 9.9, 10, 99.9, 100, np.nan])
        levels = METRICS["loss"].level(values)
        self.assertEqual(levels[:-1].tolist(), [0, 1, 2, 2, 3, 3, 4, 4, 5])
        self.assertTrue(math.isnan(levels[-1]))

    def test_rounded(self) -> None:
        """A figure is not rounded to none, to all, nor to what is bad."""
        exact = [0.0, 1e-7, 0.09999999, 0.12344, 0.123456789, 99.9999999, 100.0, math.nan]
        told = [0.0, 1e-7, 0.09999999, 0.1234, 0.1235, 99.9999999, 100.0, None]
        self.assertEqual(numbers(exact, metric=METRICS["loss"]), told)

    def test_suspicion(self) -> None:
        """User-space stamps cast doubt on an RTT and not on a loss."""
        stamps = suspect_bit("user_timestamps")
        self.assertTrue(METRICS["loss"].ignored_suspicion & stamps)
        self.assertFalse(METRICS["rtt_p50"].ignored_suspicion & stamps)

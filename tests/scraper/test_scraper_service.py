"""The whole scraper, in this process, between fake collectors and real databases."""

from __future__ import annotations

import json
import socket
import sqlite3
import threading
from collections.abc import Callable
from typing import Any

import attrs
import treq
from scraper_case import (
    NOW,
    ServiceCase,
    fill,
    influx_rows,
    small_disk,
    sqlite_rows,
    until,
    victoria_rows,
)
from servers import Influx, Victoria
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import formatEvent, globalLogPublisher
from twisted.web.client import Agent
from twisted.web.resource import Resource
from twisted.web.server import Site

from llama.collector.answers.api import CollectorApi
from llama.collector.answers.history import History
from llama.config import SpoolConfig, WriterConfig
from llama.http.server import HttpService
from llama.scraper import api, spool_file
from llama.scraper import service as service_module
from llama.scraper.service import ScraperService
from llama.scraper.writers import WriterConfigError
from llama.testing import closed_interval

NOWHERE = WriterConfig(
    type="influxdb", options={"url": "http://127.0.0.1:1", "database": "x"}, file="", line=0
)


class LoginPage(Resource):
    """Answers everything with 200, until it is a database."""

    isLeaf = True
    status = 200
    asked = 0

    def render_POST(self, request: Any) -> bytes:
        """Answer."""
        self.asked += 1
        request.setResponseCode(self.status)
        return b"<html>Please log in</html>" if self.status == 200 else b""


class InfluxTests(ServiceCase):
    """Into InfluxDB 1.x with a user and a password."""

    server: Influx

    @classmethod
    def setUpClass(cls) -> None:
        """Start the server."""
        cls.server = Influx("admin", "secret")
        cls.server.start()

    @classmethod
    def tearDownClass(cls) -> None:
        """End it."""
        cls.server.stop()

    def writer(self, **more: Any) -> WriterConfig:
        """Return the section that writes to it."""
        options = {
            "url": self.server.url, "database": "llama", "username": "admin",
            "password": "secret", "create": "true", "timeout": "1",
        } | more  # fmt: skip
        return WriterConfig(type="influxdb", options=options)

    async def arrived(self, *collectors: Any) -> None:
        """Wait until the database holds what these collectors closed, and nothing else."""
        for collector in collectors:
            await until(
                lambda c=collector: influx_rows(self.server, c.name) == c.ledger,  # type: ignore[misc]
                f"the ledger of {collector.name}",
                30,
            )

    async def test_everything_once(self) -> None:
        """What two collectors closed is in a database that the scraper created, exactly."""
        first, first_url = self.collector("one")
        second, second_url = self.collector("two")
        first.close(NOW)
        first.close(NOW + 30)
        second.close(NOW, loss=100.0)
        self.scraper([first_url, second_url], self.writer())
        await until(lambda: first.questions and second.questions, "polls")
        first.close(NOW + 60)
        await self.arrived(first, second)
        self.assertEqual(first.questions[0], "")
        self.assertIn("a1:2", first.questions)

    async def test_away_for_a_while(self) -> None:
        """A database that is killed, comes back, freezes and thaws gets everything, exactly."""
        collector, url = self.collector("outage")
        spool = SpoolConfig(path=str(self.directory / "spool.db"))
        service = self.scraper([url], self.writer(), spool=spool)
        time = NOW
        for disturb in ("kill", "start", "freeze", "thaw"):
            for _ in range(5):
                collector.close(time)
                time += 30
                await deferLater(reactor, 0.12)
            getattr(self.server, disturb)()
            for _ in range(10):
                collector.close(time)
                time += 30
                await deferLater(reactor, 0.12)
            taken = service.spool.taken(url).cursor
            self.assertIn(taken, (f"a1:{(time - NOW) // 30 - n}" for n in range(4)))
        await self.arrived(collector)
        await until(lambda: not service.spool.chunks, "an empty spool")

    async def test_two_scrapers(self) -> None:
        """Two scrapers of the same collectors into the same database do no harm."""
        collector, url = self.collector("shared")
        for _ in range(2):
            self.scraper([url], self.writer())
        for n in range(5):
            collector.close(NOW + 30 * n)
            await deferLater(reactor, 0.1)
        await self.arrived(collector)


class ManyWritersTests(ServiceCase):
    """Several writers at once, one of them dead."""

    async def test_independent(self) -> None:
        """A dead writer holds no living one; what it lacks stays in the spool."""
        victoria = Victoria()
        victoria.start()
        self.addCleanup(victoria.stop)
        store, lines = self.directory / "store.db", self.directory / "lines"
        collector, url = self.collector("many")
        service = self.scraper(
            [url],
            NOWHERE,
            WriterConfig(type="victoriametrics", options={"url": victoria.url}),
            WriterConfig(type="sqlite", options={"path": str(store)}),
            WriterConfig(type="file", options={"path": str(lines)}),
            spool=SpoolConfig(path=str(self.directory / "spool.db")),
        )
        for n in range(5):
            collector.close(NOW + 30 * n)
            await deferLater(reactor, 0.1)
        await until(lambda: sqlite_rows(store, "many") == collector.ledger, "rows in SQLite")
        await until(lambda: victoria_rows(victoria, "many") == collector.ledger, "VictoriaMetrics")
        await until(lambda: lines.exists() and len(lines.read_bytes().splitlines()) == 15, "lines")
        dead = service.deliveries["influxdb http://127.0.0.1:1/x"]
        await until(lambda: dead.trouble == "connection refused", "trouble")
        self.assertEqual(dead.waiting[1], 15)
        await self.stop(service)
        again = self.scraper(
            [url], NOWHERE, spool=SpoolConfig(path=str(self.directory / "spool.db"))
        )
        await until(
            lambda: again.deliveries[dead.name].waiting[1] == 15, "what an earlier run left"
        )

    async def test_login_page(self) -> None:
        """What a login page answered 200 to is still there when the database is back."""
        page = LoginPage()
        port = reactor.listenTCP(0, Site(page, reactor=reactor), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        options = {"url": f"http://127.0.0.1:{port.getHost().port}", "name": "db"}
        collector, url = self.collector("one")
        collector.close(NOW)
        service = self.scraper([url], WriterConfig(type="victoriametrics", options=options))
        await until(lambda: service.deliveries["db"].trouble, "trouble")
        self.assertIn("without a login page", service.deliveries["db"].trouble or "")
        self.assertEqual(service.deliveries["db"].waiting[1], 3)
        page.status = 204
        await until(lambda: not service.spool.chunks, "an empty spool")
        self.assertGreaterEqual(page.asked, 2)

    async def test_spool_across_runs(self) -> None:
        """What one run took and could not write, the next one writes; nothing is asked twice."""
        collector, url = self.collector("runs")
        store = self.directory / "sub" / "store.db"
        (self.directory / "sub").touch()  # in the way
        settings = {"spool": SpoolConfig(path=str(self.directory / "spool.db"))}
        writer = WriterConfig(type="sqlite", options={"path": str(store)})
        service = self.scraper([url], writer, **settings)
        collector.close(NOW)
        await until(lambda: service.spool.taken(url).newest_ns, "points")
        await self.stop(service)
        collector.closed.clear()  # it holds them no longer
        (self.directory / "sub").unlink()
        self.scraper([url], writer, **settings)
        collector.close(NOW + 30)
        await until(lambda: sqlite_rows(store, "runs") == collector.ledger, "both intervals")
        self.assertEqual(collector.questions.count(""), 1)


class ApiTests(ServiceCase):
    """What the scraper says about itself."""

    async def test_all_of_it(self) -> None:
        """State and metrics show polls, points, spool, lag and each writer's queue."""
        collector, url = self.collector("shown")
        collector.close(NOW)
        service = self.scraper(
            [url, "http://127.0.0.1:1"],
            NOWHERE,
            WriterConfig(type="file", options={"path": str(self.directory / "f"), "name": "f"}),
            api="tcp:0:interface=127.0.0.1",
            api_token="t0ken",
        )
        await until(lambda: service.deliveries["f"].newest_ns, "a write")
        await until(lambda: service.deliveries["influxdb http://127.0.0.1:1/x"].trouble, "trouble")
        await until(
            lambda: service.poller.collectors["http://127.0.0.1:1"].trouble, "a refused poll"
        )
        assert service.http is not None
        http = treq.client.HTTPClient(Agent(reactor))
        self.assertEqual(await (await http.get(f"{service.http.url}status")).text(), "ok")
        self.assertEqual((await http.get(f"{service.http.url}state")).code, 401)
        auth = {"Authorization": "Bearer t0ken"}
        state = await (await http.get(f"{service.http.url}state", headers=auth)).json()
        self.assertEqual(state["collectors"][url]["ok"], True)
        self.assertEqual(
            state["collectors"]["http://127.0.0.1:1"],
            {"ok": False, "problem": "connection refused", "lag_s": None, "has_cursors": True},
        )
        self.assertEqual(state["spool"]["chunks"], 1)
        self.assertEqual(
            state["writers"]["f"],
            {"ok": True, "problem": None, "queue_chunks": 0, "queue_points": 0},
        )
        self.assertEqual(state["writers"]["influxdb http://127.0.0.1:1/x"]["queue_points"], 3)
        metrics = await (await http.get(f"{service.http.url}metrics", headers=auth)).text()
        for line in (
            f'llama_scraper_points_taken_total{{collector="{url}"}} 3.0',
            'llama_scraper_points_written_total{writer="f"} 3.0',
            'llama_scraper_writer_up{writer="f"} 1.0',
            'llama_scraper_writer_up{writer="influxdb http://127.0.0.1:1/x"} 0.0',
            'llama_scraper_writer_queue_points{writer="influxdb http://127.0.0.1:1/x"} 3.0',
            'llama_scraper_collector_up{collector="http://127.0.0.1:1"} 0.0',
            "llama_scraper_spool_chunks 1.0",
            "llama_scraper_spool_ok 1.0",
            "llama_scraper_spool_max_bytes 6.7108864e+07",
            "llama_scraper_spool_max_age_seconds 3600.0",
        ):
            self.assertIn(line, metrics.splitlines())
        self.assertRegex(metrics, r'collector_lag_seconds\{collector="[^"]+"\} [0-9.e+]+\n')
        self.assertRegex(metrics, r"spool_bytes [1-9]")

    def lines_with(self, words: str) -> Callable[[], list[str]]:
        """Return what tells the lines of the log, from now on, that have these words."""
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)

        def said() -> list[str]:
            texts = [formatEvent(event) or "" for event in events]
            return [text for text in texts if words in text]

        return said

    async def test_said_before_points_are_dropped(self) -> None:
        """A spool that is half full, or half as old as may be, is told once, with the time left."""
        said = self.lines_with("will be dropped")
        collector, url = self.collector("fills")
        collector.close(NOW)
        service = self.scraper([url], NOWHERE)
        await until(lambda: service.deliveries["influxdb http://127.0.0.1:1/x"].trouble, "trouble")
        held = service.spool._held
        began = held.seconds()
        for passed_s in (0.0, 1700.0, 1801.0, 2000.0):
            held.seconds = lambda passed_s=passed_s: began + passed_s
            service._look_after_spool()
        [text] = said()
        self.assertRegex(
            text, r"^0% of the spool is taken, and the oldest points wait for 0\.5 hours: in some"
            r" 0\.5 hours the first will be dropped, unless influxdb http://127\.0\.0\.1:1/x"
            r" \(connection refused\) can write by then$",
        )  # fmt: skip
        held.max_age_s, held.max_octets = 1e6, round(held.octets / 0.75)
        service._look_after_spool()
        self.assertEqual(len(said()), 1)
        held.max_octets *= 10
        service._look_after_spool()  # it was over
        held.max_octets //= 10
        service._look_after_spool()
        self.assertIn("75% of the spool is taken", said()[1])
        self.assertIn("in some 0.2 hours", said()[1])

    async def test_said_what_ends_with_the_process(self) -> None:
        """A scraper without a spool on disk says what it takes with it; with one it takes nothing."""
        said = self.lines_with("end with this process")
        collector, url = self.collector("ends")
        collector.close(NOW)
        on_disk = SpoolConfig(path=str(self.directory / "spool.db"))
        for spool, count in ((on_disk, 0), (None, 1)):
            service = self.scraper([url], NOWHERE, spool=spool)
            await until(lambda s=service: s.spool.chunks, "points")
            await self.stop(service)
            self.assertEqual(len(said()), count)
        self.assertIn(
            "3 points of the last 0 minutes that influxdb http://127.0.0.1:1/x did not take",
            said()[0],
        )


class RealCollectorTests(ServiceCase):
    """LLAMA's own collector on the other side."""

    async def test_its_answers(self) -> None:
        """What a collector's API answers arrives field by field, and what it forgot is said."""
        history = History(4)
        collector = CollectorApi(reactor, history, src_hostname="probe1", health=dict)
        http = HttpService(
            reactor, "tcp:0:interface=127.0.0.1", collector.app.resource(), what="x", token="t0ken"
        )
        http.startService()
        self.addCleanup(http.stopService)
        expected: dict[tuple[str, int], dict[str, float]] = {}

        def close(number: int) -> None:
            closed = closed_interval(20, close_number=number, loss=0.3, seed=7)
            history.append(closed)
            for pair, stats in zip(closed.pairs, closed.pair_stats, strict=True):
                expected[pair.target, closed.end_ns // 10**9] = {
                    name: float(stats[name]) for name in ("sent", "lost", "lost_forward")
                }

        def stored() -> dict[tuple[str, int], dict[str, float]]:
            found = sqlite_rows(self.directory / "store.db", "collector01.example.net")
            return {
                key: {name: row[name] for name in ("sent", "lost", "lost_forward")}
                for key, row in found.items()
            }

        def service() -> ScraperService:
            return self.scraper(
                [http.url.rstrip("/")],
                WriterConfig(type="sqlite", options={"path": str(self.directory / "store.db")}),
                spool=SpoolConfig(path=str(self.directory / "spool.db")),
                collector_token="t0ken",
            )

        for number in range(1, 5):
            close(number)
        first = service()
        await until(lambda: stored() == expected, "four intervals")
        await self.stop(first)
        kept = dict(expected)
        for number in range(5, 11):  # of these, two are forgotten
            close(number)
        second = service()
        await until(lambda: len(stored()) == 20 * 8, "four more")
        end = {time for _, time in expected}
        lost = sorted(end)[4:6]
        self.assertEqual(
            stored(), {k: v for k, v in expected.items() if k in kept or k[1] not in lost}
        )
        missed = second.counts.registry.get_sample_value(
            "llama_scraper_intervals_missed_total", {"collector": http.url.rstrip("/")}
        )
        self.assertEqual(missed, 2)
        await self.stop(second)


class ReloadTests(ServiceCase):
    """A new configuration while running."""

    async def test_difference(self) -> None:
        """Collectors and writers come and go; what stays is not disturbed."""
        one, one_url = self.collector("one")
        two, two_url = self.collector("two")
        sections = [
            WriterConfig(type="file", options={"path": str(self.directory / name), "name": name})
            for name in ("a", "b", "c")
        ]
        service = self.scraper([one_url], sections[0], sections[1])
        one.close(NOW, pairs=1)
        await until(lambda: all(d.newest_ns for d in service.deliveries.values()), "a write")
        kept = service.deliveries["b"]
        await service.reload(
            attrs.evolve(
                service.config, collectors=(one_url, two_url), writers=(sections[1], sections[2])
            )
        )
        self.assertEqual(list(service.deliveries), ["b", "c"])
        self.assertIs(service.deliveries["b"], kept)
        two.close(NOW, pairs=1)
        one.close(NOW + 30, pairs=1)

        def sources(name: str) -> list[str]:
            path = self.directory / name
            rows = path.read_bytes().splitlines() if path.exists() else []
            return sorted(json.loads(row)["tags"]["src_hostname"] for row in rows)

        await until(lambda: sources("b") == ["one", "one", "two"], "the old writer")
        await until(lambda: sources("c") == ["one", "two"], "the new writer")
        self.assertEqual(sources("a"), ["one"])
        asked = one.questions.count("")
        await service.reload(attrs.evolve(service.config, interval_s=0.2))
        one.close(NOW + 60, pairs=1)
        await until(lambda: len(sources("c")) == 3, "points at the new pace")
        self.assertEqual(one.questions.count(""), asked)

    async def test_mistake(self) -> None:
        """A wrong configuration changes nothing."""
        collector, url = self.collector("one")
        section = WriterConfig(
            type="file", options={"path": str(self.directory / "a"), "name": "a"}
        )
        service = self.scraper([url], section)
        before = service.config
        for wrong in (
            WriterConfig(type="no such"),
            WriterConfig(type="file", options={"path": "/b", "name": "a"}),
        ):
            with self.assertRaises(WriterConfigError):
                await service.reload(attrs.evolve(before, collectors=(), writers=(section, wrong)))
        self.assertIs(service.config, before)
        collector.close(NOW)
        await until(lambda: service.deliveries["a"].newest_ns, "a write")

    def hanging(self, name: str, **more: str) -> WriterConfig:
        """Return a writer whose database accepts connections and never answers."""
        if not hasattr(self, "silent"):
            self.silent = socket.create_server(("127.0.0.1", 0))
            self.addCleanup(self.silent.close)
        url = f"http://127.0.0.1:{self.silent.getsockname()[1]}"
        options = {"url": url, "database": "x", "name": name} | more
        return WriterConfig(type="influxdb", options=options)

    async def test_one_after_the_other(self) -> None:
        """Reloads while one is under way, held up by a dead database, come after it; the last wins."""
        self.patch(service_module, "GRACE_S", 0.3)
        one, one_url = self.collector("one")
        two, two_url = self.collector("two")
        service = self.scraper([one_url], self.hanging("first"))
        one.close(NOW)
        await until(lambda: service.deliveries["first"]._under_way, "a write under way")
        last = WriterConfig(type="file", options={"path": str(self.directory / "a"), "name": "a"})
        reloads = [
            service.reload(attrs.evolve(service.config, collectors=urls, writers=writers))
            for urls, writers in (
                ((one_url,), (self.hanging("second"),)),
                ((one_url, two_url), (self.hanging("second"), self.hanging("third"))),
                ((two_url,), (last,)),
            )
        ]
        for reload in reloads:
            await reload
        self.assertEqual(list(service.deliveries), ["a"])
        self.assertEqual(list(service.poller.collectors), [two_url])
        self.assertEqual(service.config.writers, (last,))
        two.close(NOW)
        await until(lambda: service.deliveries["a"].newest_ns, "a write")
        await service.reload(attrs.evolve(service.config, collectors=(one_url,)))
        self.assertEqual(list(service.poller.collectors), [one_url])

    async def test_stopped_meanwhile(self) -> None:
        """Stopping while configurations are being applied leaves nothing running."""
        self.patch(service_module, "GRACE_S", 0.3)
        one, url = self.collector("one")
        service = self.scraper([url], self.hanging("first"))
        one.close(NOW)
        await until(lambda: service.deliveries["first"]._under_way, "a write under way")
        reloads = [
            service.reload(attrs.evolve(service.config, writers=(self.hanging(name),), **more))
            for name, more in (("second", {}), ("third", {"interval_s": 0.2}))
        ]
        await self.stop(service)
        for reload in reloads:
            await reload
        asked = len(one.questions)
        await deferLater(reactor, 0.5)
        self.assertEqual(len(one.questions), asked)

    async def test_same_name(self) -> None:
        """A writer that is configured anew under its name gets what the old one left."""
        self.patch(service_module, "GRACE_S", 0.3)
        one, url = self.collector("one")
        service = self.scraper([url], self.hanging("db"))
        one.close(NOW)
        await until(lambda: service.deliveries["db"].waiting[1] == 3, "points that wait")
        path = self.directory / "a"
        section = WriterConfig(type="file", options={"path": str(path), "name": "db"})
        await service.reload(attrs.evolve(service.config, writers=(section,)))
        await until(lambda: path.exists() and len(path.read_bytes().splitlines()) == 3, "lines")
        await until(lambda: not service.spool.chunks, "an empty spool")

    async def test_removed_amid_puts(self) -> None:
        """What is on its way into the spool when its writers are removed is dropped and counted."""
        self.patch(service_module, "GRACE_S", 0.3)
        one, url = self.collector("one")
        service = self.scraper(
            [url], self.hanging("old"), spool=SpoolConfig(path=str(self.directory / "spool.db"))
        )
        one.close(NOW)
        await until(lambda: service.deliveries["old"]._under_way, "a write under way")
        inserting, go_on = threading.Event(), threading.Event()
        self.addCleanup(go_on.set)
        insert = spool_file.insert

        def slow(*args: Any) -> None:
            inserting.set()
            go_on.wait(20)
            insert(*args)

        self.patch(spool_file, "insert", slow)
        one.close(NOW + 30)
        await until(inserting.is_set, "a transaction under way")
        path = self.directory / "a"
        new = WriterConfig(type="file", options={"path": str(path), "name": "new"})
        reload = service.reload(attrs.evolve(service.config, writers=(new,)))
        await until(lambda: not service.deliveries, "the old writer's end")
        go_on.set()
        await reload
        one.close(NOW + 60)
        await until(lambda: path.exists() and len(path.read_bytes().splitlines()) == 3, "lines")
        await until(lambda: not service.spool.chunks, "an empty spool")
        dropped = service.counts.registry.get_sample_value(
            "llama_scraper_points_dropped_total", {"writer": "old", "reason": "writer_removed"}
        )
        self.assertEqual(dropped, 6)

    async def test_stopped_while_a_writer_leaves(self) -> None:
        """The spool is closed after the last write of a writer that was being removed is noted."""
        one, url = self.collector("one")
        store = WriterConfig(type="file", options={"path": str(self.directory / "a")})
        spool = SpoolConfig(path=str(self.directory / "spool.db"))
        service = self.scraper([url], store, spool=spool)
        [delivery] = service.deliveries.values()
        await until(lambda: delivery.opened or service.poller.collectors, "the start")
        writing: Deferred[Any] = Deferred()
        asked: list[Any] = []
        delivery.writer.write = lambda points: asked.append(points) or writing
        one.close(NOW)
        await until(lambda: asked, "a write under way")
        reload = service.reload(attrs.evolve(service.config, writers=(NOWHERE,)))
        await until(lambda: not service.deliveries, "the writer being removed")
        stopped = self.stop(service)
        stopping = Deferred.fromCoroutine(stopped)
        await deferLater(reactor, 0.1)
        self.assertFalse(stopping.called)
        writing.callback([])
        await reload
        await stopping
        db = sqlite3.connect(self.directory / "spool.db")
        self.addCleanup(db.close)
        self.assertEqual(db.execute("SELECT * FROM chunks").fetchall(), [])

    async def test_damage_amid_an_answer(self) -> None:
        """Whenever a spool is found damaged, collectors are asked for all that they hold."""
        one, url = self.collector("one")
        service = self.scraper(
            [url], NOWHERE, spool=SpoolConfig(path=str(self.directory / "spool.db"))
        )
        spool = service.spool
        one.close(NOW)
        await until(lambda: spool.chunks, "the first interval")
        damaged = sqlite3.DatabaseError("database disk image is malformed")
        damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        insert, pack, load = spool_file.insert, spool.pack, spool_file.load
        found = loads = 0

        def loaded(*args: Any) -> Any:
            nonlocal loads
            loads += 1
            return load(*args)

        def fails(*args: Any) -> Any:
            nonlocal found
            found += 1
            if found == 1:
                raise damaged
            return insert(*args)

        self.patch(spool_file, "load", loaded)
        self.patch(spool_file, "insert", fails)
        one.close(NOW + 30)
        await until(lambda: sum(c.points for c in spool.chunks.values()) == 6, "both intervals")
        self.assertEqual(loads, 1)

        def packed(*args: Any) -> Any:
            self.patch(spool, "pack", pack)
            noticed = Deferred.fromCoroutine(spool._run(lambda _: fails()))
            return noticed.addErrback(lambda _: None).addCallback(lambda _: pack(*args))

        found = 0
        self.patch(spool, "pack", packed)
        one.close(NOW + 60)
        await until(lambda: sum(c.points for c in spool.chunks.values()) == 9, "all three")
        self.assertEqual(loads, 2)

    async def test_spool_not_open_again(self) -> None:
        """A spool that cannot be opened again after damage is shown, and holds up no end."""
        one, url = self.collector("one")
        service = self.scraper(
            [url],
            NOWHERE,
            spool=SpoolConfig(path=str(self.directory / "spool.db")),
            api="tcp:0:interface=127.0.0.1",
        )
        one.close(NOW)
        await until(lambda: service.spool.chunks, "the first interval")
        damaged = sqlite3.DatabaseError("database disk image is malformed")
        damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        full = sqlite3.OperationalError("database or disk is full")
        full.sqlite_errorcode = sqlite3.SQLITE_FULL

        def raises(error: Exception) -> Any:
            raise error

        load = spool_file.load
        self.patch(spool_file, "insert", lambda *_: raises(damaged))
        self.patch(spool_file, "load", lambda *_: raises(full))
        one.close(NOW + 30)
        await until(lambda: service.spool.trouble, "trouble")
        said = "it cannot be opened: the disk is full"
        self.assertEqual(api.state(service)["spool"]["problem"], said)
        self.assertIn(0.0, [m.samples[0].value for m in api.Gauges(service).collect()
                            if m.name == "llama_scraper_spool_ok"])  # fmt: skip
        asked = len(one.questions)
        await deferLater(reactor, 0.5)
        self.assertEqual(len(one.questions), asked)  # nobody is asked for what cannot be taken
        service.poller._retry_spool_at = 0.0  # instead of waiting for it
        await until(lambda: len(one.questions) > asked, "another question")
        stopping = Deferred.fromCoroutine(self.stop(service))
        await until(lambda: stopping.called, "the end")
        await stopping
        self.patch(spool_file, "load", load)

    async def test_wrong_authorities(self) -> None:
        """A CA file that is none changes nothing, not even the writers."""
        _, url = self.collector("one")
        section = WriterConfig(type="file", options={"path": str(self.directory / "a")})
        service = self.scraper([url], section)
        before = dict(service.deliveries)
        with self.assertRaises(WriterConfigError):
            await service.reload(
                attrs.evolve(service.config, ca_file="/no such", writers=(NOWHERE,))
            )
        self.assertEqual(service.deliveries, before)


class StopTests(ServiceCase):
    """Stopping at any moment."""

    async def test_at_once(self) -> None:
        """Stopping while everything is still being opened leaves nothing behind."""
        _, url = self.collector("one")
        for wait_s in (0, 0.001, 0.01, 0.03):
            service = self.scraper(
                [url],
                WriterConfig(type="sqlite", options={"path": str(self.directory / "store.db")}),
                spool=SpoolConfig(path=str(self.directory / "spool.db")),
            )
            await deferLater(reactor, wait_s)
            await self.stop(service)
            self.assertEqual(
                [
                    t.name
                    for t in threading.enumerate()
                    if "PoolThread" in t.name and "twisted" not in t.name.lower()
                ],
                [],
            )


class FullDiskTests(ServiceCase):
    """A spool on a tmpfs of a few megabytes, which needs root."""

    async def test_nothing_is_lost(self) -> None:
        """While the disk is full the collectors hold their intervals; then all of them arrive."""
        disk = small_disk(self)
        collector, url = self.collector("full")
        store = self.directory / "store.db"
        service = self.scraper(
            [url],
            WriterConfig(type="sqlite", options={"path": str(store)}),
            spool=SpoolConfig(path=str(disk / "spool.db")),
        )
        collector.close(NOW)
        await until(lambda: sqlite_rows(store, "full") == collector.ledger, "the first interval")
        fill(disk)
        collector.close(NOW + 30)
        await until(lambda: service.spool.trouble, "a full disk")
        self.assertIn("the disk is full", api.state(service)["spool"]["problem"])
        asked = len(collector.questions)
        for n in range(2, 8):
            collector.close(NOW + 30 * n)
            await deferLater(reactor, 0.1)
        self.assertLessEqual(len(collector.questions), asked + 1)
        self.assertEqual(service.spool.taken(url).cursor, "a1:1")
        (disk / "others").unlink()
        service.poller._retry_spool_at = 0.0  # instead of waiting for it
        await until(lambda: sqlite_rows(store, "full") == collector.ledger, "all intervals")
        await until(lambda: service.spool.trouble is None, "no trouble")
        await self.stop(service)

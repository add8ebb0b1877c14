"""The reflector's own figures: windows, cursors, and their way through a scraper into a database."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import time
import urllib.request
from typing import Any

from reflector_case import StillReactor, probe
from servers import free_port, free_udp_port
from services import Service, until
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from llama.config import ReflectorConfig
from llama.reflector.sessions import Sessions
from llama.reflector.stats import TICK_S, Stats
from llama.reflector.tally import Tally
from llama.reflector.windows import Windows
from llama.wire import stamp

BEGIN_S = 1_714_564_800 + 7  # seven seconds into a window of 30


class Ports:
    """Sockets that do as they are told."""

    def __init__(self) -> None:
        self.tally = Tally()
        self.sessions = Sessions(64)
        self.generation = 1
        self.port_number = 8100

    def receive_drops(self) -> int:
        """Return a number that is known."""
        return 3

    def damaged(self) -> int:
        """Likewise."""
        return 2


class WindowsTests(SynchronousTestCase):
    def setUp(self) -> None:
        """Close five windows of which three are held."""
        self.windows = Windows(3, incarnation="0123456789abcdef")
        self.cursors = [self.windows.cursor]
        for number in range(5):
            self.windows.append({"n": number})
            self.cursors.append(self.windows.cursor)

    def answer(self, since: str | None) -> tuple[list[int], int]:
        """Return the numbers of the points answered with, and how many were missed."""
        body, missed = self.windows.answer(since)
        return [point["n"] for point in json.loads(body)], missed

    def test_newest(self) -> None:
        """Without a cursor the newest window is answered with, or nothing before there is one."""
        self.assertEqual(([4], 0), self.answer(None))
        self.assertEqual((b"[]", 0), Windows(3).answer(None))

    def test_cursors(self) -> None:
        """A cursor gives what closed after it, and says how much of that is gone."""
        for number, expected in enumerate(
            (([2, 3, 4], 2), ([2, 3, 4], 1), ([2, 3, 4], 0), ([3, 4], 0), ([4], 0), ([], 0))
        ):
            self.assertEqual(expected, self.answer(self.cursors[number]))

    def test_unknown_cursors(self) -> None:
        """An empty cursor, nonsense, or one of another incarnation gives all that is held."""
        for cursor in ("", "x", "fedcba9876543210-4", "0123456789abcdef-6", "0123456789abcdef-"):
            self.assertEqual(([2, 3, 4], 0), self.answer(cursor))


class StatsTests(SynchronousTestCase):
    def setUp(self) -> None:
        """Begin to count in the middle of a window."""
        self.wall_ns, self.clock = BEGIN_S * 10**9, Clock()
        self.ports = Ports()
        config = ReflectorConfig(keep_intervals=4, stats_tags={"rack": "01"}, src_hostname="edge")
        self.stats = Stats(
            StillReactor(), config, self.ports,
            wall_ns=lambda: self.wall_ns, monotonic_s=self.clock.seconds,
        )  # fmt: skip
        self.stats.begin()

    def go(self, seconds: float) -> None:
        """Let time pass, a tick at a time."""
        for _ in range(round(seconds / TICK_S)):
            self.wall_ns += round(TICK_S * 1e9)
            self.clock.advance(TICK_S)
            self.stats.tick()

    def points(self) -> list[dict[str, Any]]:
        """Return what is held."""
        found: list[dict[str, Any]] = json.loads(self.stats.windows.answer("")[0])
        return found

    def test_a_point(self) -> None:
        """It has the window's end for its time, totals since the start and rates of the window."""
        tally = self.ports.tally
        tally.received, tally.limited = 230, 4
        tally.answered.update({"stamp": 100, "stamp-auth": 15})
        tally.drop("loop", 115)
        self.go(23)
        [point] = self.points()
        self.assertEqual("reflector_stats", point["measurement"])
        self.assertEqual({"src_hostname": "edge", "port": "8100", "rack": "01"}, point["tags"])
        self.assertEqual("2024-05-01T12:00:30Z", point["time"])
        fields = point["fields"]
        self.assertTrue(all(type(value) is float for value in fields.values()))
        expected = {
            "received_total": 230, "answered_total": 115, "answered_total_stamp": 100,
            "answered_total_stamp_auth": 15, "dropped_total": 115, "dropped_total_loop": 115,
            "limited_total": 4, "receive_drops_total": 3, "damaged_total": 2, "sessions": 0,
            "sessions_evicted_total": 0, "config_generation": 1,
        }  # fmt: skip
        self.assertEqual(expected, {name: fields[name] for name in expected})
        self.assertAlmostEqual(10.0, fields["received_per_second"], 3)
        self.assertAlmostEqual(5.0, fields["answered_per_second"], 3)
        self.assertGreater(fields["resident_bytes"], 1e6)
        self.assertGreater(fields["cpu_seconds_total"], 0)
        tally.received += 60
        self.go(30)
        fields = self.points()[-1]["fields"]
        self.assertEqual(290, fields["received_total"])
        self.assertAlmostEqual(2.0, fields["received_per_second"], 3)
        self.assertAlmostEqual(0.0, fields["answered_per_second"], 3)

    def test_as_many_as_are_kept(self) -> None:
        """However long nobody asks, no more than that is held."""
        self.go(30 * 9)
        self.assertEqual(
            ["12:03:00", "12:03:30", "12:04:00", "12:04:30"],
            [point["time"][11:19] for point in self.points()],
        )

    def test_lag(self) -> None:
        """A tick that comes late is told in its window, and shown until the next one is over."""
        self.go(10)
        self.wall_ns += 2_500_000_000
        self.clock.advance(2.5)
        self.stats.tick()
        self.go(60)
        lags = [point["fields"]["tick_lag_seconds"] for point in self.points()]
        self.assertAlmostEqual(2.5 - TICK_S, lags[0], 3)
        self.assertAlmostEqual(0.0, lags[1], 3)
        self.assertAlmostEqual(0.0, self.stats.tick_lag_s, 3)

    def test_the_clock_is_set_back(self) -> None:
        """No time is told twice, and nobody waits until the clock is where it was."""
        self.go(60)
        self.wall_ns -= 45 * 10**9
        self.ports.tally.received = 30
        self.go(15)
        self.ports.tally.received = 75
        self.go(30)
        times = [point["time"][11:] for point in self.points()]
        self.assertEqual(["12:00:30Z", "12:01:00Z", "12:00:30.001Z", "12:01:00.001Z"], times)
        rates = [point["fields"]["received_per_second"] for point in self.points()]
        self.assertAlmostEqual(30 / 15, rates[2], 2)
        self.assertAlmostEqual(45 / 30, rates[3], 2)
        self.wall_ns -= 365 * 86400 * 10**9
        self.go(60)
        times = [point["time"] for point in self.points()]
        self.assertEqual(["2023-05-02T12:01:30.002Z", "2023-05-02T12:02:00.002Z"], times[2:])

    def test_the_clock_is_set_forward(self) -> None:
        """Windows that never were are left out, and rates are of the time that really passed."""
        self.go(30)
        self.wall_ns += 3600 * 10**9
        self.ports.tally.received = 30
        self.go(30)
        self.assertEqual("13:00:30", self.points()[1]["time"][11:19])
        rates = [point["fields"]["received_per_second"] for point in self.points()]
        self.assertLess(max(rates), 40)


class Reflector(Service):
    """A reflector in a process of its own, with its HTTP on a free port."""

    def __init__(self, configuration: str = "") -> None:
        self.port = free_udp_port()
        self.api = f"127.0.0.1:{free_port()}"
        super().__init__("llama-reflector", "--config", "reflector.yaml", "--interface", "127.0.0.1",
                         "--port", str(self.port), "--api", self.api)  # fmt: skip
        self.configure(configuration)

    def configure(self, configuration: str) -> None:
        """Write the configuration file."""
        (self.directory / "reflector.yaml").write_text("stats: {interval: 1}\n" + configuration)

    def get(self, path: str) -> tuple[str, Any]:
        """Return the body at ``path`` and its headers."""
        with urllib.request.urlopen(f"http://{self.api}{path}", timeout=10) as answer:
            return answer.read().decode(), answer.headers

    def answers(self, within_s: float = 5) -> bool:
        """Tell whether a probe comes back."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(within_s)
            sock.connect(("127.0.0.1", self.port))
            now = stamp.ntp_from_unix_ns(time.time_ns())
            try:
                sock.send(stamp.SENDER_STRUCT.pack(1, now, 0x8001, 3))
                return len(sock.recv(100)) == 44
            except (TimeoutError, ConnectionRefusedError):
                return False


class ProcessTests(SynchronousTestCase):
    def reflector(self, configuration: str = "") -> Reflector:
        """Start a reflector that lasts as long as the test."""
        service = Reflector(configuration)
        service.start()
        self.addCleanup(service.stop)
        until(service.answers, "an answer")
        return service

    def test_scraped_like_a_collector(self) -> None:
        """A scraper that has a reflector among its collectors writes its figures to a database."""
        reflector = self.reflector()
        scraper = Service("llama-scraper", "--config", "scraper.yaml")
        (scraper.directory / "scraper.yaml").write_text(
            f"interval: 0.5\ncollectors: ['{reflector.api}']\n"
            "writers: [{type: sqlite, path: store.sqlite}]\n"
            f"api: {{bind: '127.0.0.1:{free_port()}'}}\n"
        )
        scraper.start()
        self.addCleanup(scraper.stop)

        def rows() -> list[tuple[str, str, int, str]]:
            try:
                with sqlite3.connect(f"{scraper.directory}/store.sqlite") as store:
                    found = store.execute(
                        "SELECT measurement, tags, time_ms, more FROM samples JOIN series"
                        " ON series_id = series.id ORDER BY time_ms"
                    ).fetchall()
            except sqlite3.OperationalError:  # not there yet
                return []
            return found if len(found) > 2 else []

        found = until(rows, "three windows in the database")
        times = [row[2] for row in found]
        # On a busy machine a window may be left out, but none comes twice or off its second.
        self.assertEqual([0] * len(times), [time_ms % 1000 for time_ms in times])
        self.assertEqual(sorted(set(times)), times)
        measurement, tags, _, more = found[-1]
        self.assertEqual("reflector_stats", measurement)
        self.assertEqual(
            {"src_hostname": socket.gethostname(), "port": str(reflector.port)}, json.loads(tags)
        )
        self.assertEqual(1.0, json.loads(more)["answered_total_stamp"])

    def test_http(self) -> None:
        """Cursors walk through the windows; what is asked wrongly or elsewhere is refused."""
        reflector = self.reflector()
        _, headers = until(lambda: self.held(reflector), "a window")
        body, _ = reflector.get("/influxdata?since=" + headers["Llama-Cursor"])
        self.assertLessEqual(len(json.loads(body)), 1)
        body, headers = reflector.get("/influxdata?since=")
        self.assertEqual("application/json", headers["Content-Type"])
        self.assertGreaterEqual(len(json.loads(body)), 1)
        with self.assertRaises(urllib.error.HTTPError) as refused:
            reflector.get("/influxdata?since=%ff")
        self.assertEqual(400, refused.exception.code)
        metrics, _ = reflector.get("/metrics")
        for line in ("llama_reflector_config_generation 1.0", "llama_reflector_sessions 1.0",
                     'llama_reflector_answered_total{format="stamp"} 1.0'):  # fmt: skip
            self.assertIn(line, metrics.splitlines())
        for name in ("tick_lag_seconds", "resident_bytes", "cpu_seconds_total"):
            self.assertIn(f"llama_reflector_{name} ", metrics)

    @staticmethod
    def held(reflector: Reflector) -> Any:
        """Return the newest window and its headers once there is one."""
        body, headers = reflector.get("/influxdata")
        return (body, headers) if len(json.loads(body)) else None

    def generation(self, reflector: Reflector) -> float:
        """Return how many configurations were in use."""
        for line in reflector.get("/metrics")[0].splitlines():
            if line.startswith("llama_reflector_config_generation "):
                return float(line.split()[1])
        raise AssertionError("no generation")

    def test_reload(self) -> None:
        """SIGHUP has it judge by the file as it is now; a file with a mistake changes nothing."""
        reflector = self.reflector()
        reflector.configure("allow: [192.0.2.0/24]\n")
        reflector.send_signal(signal.SIGHUP)
        until(lambda: self.generation(reflector) == 2, "the second configuration")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", reflector.port))
            sock.send(probe(1))
            dropped = 'llama_reflector_dropped_total{reason="not_allowed"} 1.0'
            until(lambda: dropped in reflector.get("/metrics")[0], "its being dropped")
            sock.setblocking(
                False
            )  # what is counted as dropped has been judged: nothing is to come
            self.assertRaises(BlockingIOError, sock.recv, 100)
        reflector.configure("allow: [192.0.2.1/24]\n")
        reflector.send_signal(signal.SIGHUP)
        until(lambda: "not reloaded: reflector.yaml:2: " in reflector.text(), "the mistake")
        self.assertEqual(2, self.generation(reflector))
        reflector.configure("allow: [192.0.2.0/24]\n")
        for _ in range(20):  # however fast they come; signals that come at once are one
            reflector.send_signal(signal.SIGHUP)
        until(lambda: self.generation(reflector) > 2, "the third configuration")
        last = self.generation(reflector)
        reflector.configure("allow: [127.0.0.0/8]\nlimits: {sessions: 100}\n")
        reflector.send_signal(signal.SIGHUP)
        until(lambda: "limits: {sessions} take" in reflector.text(), "the last configuration")
        self.assertGreater(self.generation(reflector), last)
        self.assertTrue(reflector.answers())
        self.assertIn(dropped, reflector.get("/metrics")[0])

"""``twistd llama-scraper`` as a process: its mistakes, its signals, and being killed again and again."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from fake_collector import FakeCollector
from scraper_case import NOW, Ledger, ServiceCase, influx_rows, sqlite_rows, until
from servers import Influx, die_with_parent, free_port
from twisted.internet import reactor
from twisted.internet.task import LoopingCall, deferLater
from twisted.web.server import Site

ROOT = Path(__file__).resolve().parent.parent.parent


def twistd(*arguments: str) -> list[str]:
    """Return the command line that runs twistd in the foreground."""
    code = "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"
    return [sys.executable, "-c", code, "-n", "--pidfile=", *arguments]


class ProcessCase(ServiceCase):
    """A scraper in a process of its own."""

    def setUp(self) -> None:
        """Nothing runs yet."""
        super().setUp()
        self.config = self.directory / "scraper.yaml"
        self.log = self.directory / "log"
        self.process: subprocess.Popen[bytes] | None = None

    async def tearDown(self) -> None:
        """End the process."""
        self.end(signal.SIGKILL)
        await super().tearDown()

    def write(self, **sections: Any) -> None:
        """Write a configuration."""
        self.config.write_text(yaml.safe_dump({"interval": 0.2} | sections))

    def start(self, prepare: Callable[[], None] = die_with_parent) -> None:
        """Start twistd."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                twistd("llama-scraper", "--config", str(self.config)),
                cwd=self.directory,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
                preexec_fn=prepare,
            )

    def end(self, how: int) -> int:
        """Send a signal and wait for the end; returns the exit status."""
        if self.process is None:
            return 0
        self.process.send_signal(how)
        status = self.process.wait()
        self.process = None
        return status

    async def logged(self, text: str) -> None:
        """Wait until the log says something."""
        await until(lambda: text in self.log.read_text(), f"{text!r} in the log")


class Everywhere(FakeCollector):
    """A collector at all loopback addresses, which notes at which it was asked."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.addresses: set[str] = set()

    def render_GET(self, request: Any) -> Any:
        """Answer."""
        self.addresses.add(request.getHost().host)
        return super().render_GET(request)


class ManyTests(ProcessCase):
    """More collectors than a process may have files open by default."""

    async def test_all_are_asked(self) -> None:
        """The limit that needs no privilege is raised: each has a connection at the same time."""
        collector = Everywhere("many")
        self.collectors.append(collector)
        collector.port = reactor.listenTCP(0, Site(collector, reactor=reactor))
        port = collector.port.getHost().port
        urls = [f"http://127.9.{n // 100}.{n % 100 + 1}:{port}" for n in range(200)]
        self.write(
            collectors=urls,
            writers=[{"type": "file", "path": "x"}],
            interval=2,
            api={"bind": f"127.0.0.1:{free_port()}"},
        )

        def few_files() -> None:
            die_with_parent()
            resource.setrlimit(resource.RLIMIT_NOFILE, (100, 1000))

        self.start(few_files)
        await until(lambda: len(collector.addresses) == len(urls), "a question to each")
        self.assertNotIn("Too many open files", self.log.read_text())


class MistakeTests(ProcessCase):
    """What is wrong is said at the start, in one line, with exit status 1."""

    def run_it(self, *arguments: str) -> tuple[int, str]:
        """Run twistd to its end; returns exit status and what it says last."""
        done = subprocess.run(
            twistd("llama-scraper", *arguments),
            cwd=self.directory,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        said = done.stdout + done.stderr
        self.assertNotIn("Traceback", said)
        return done.returncode, said.strip().splitlines()[-1]

    def test_configuration(self) -> None:
        """Mistakes in the configuration, found by its reader and by the writers."""
        self.write(collectors=["127.0.0.1"], writers=[{"type": "influxdb", "databse": "x"}])
        self.assertEqual(
            self.run_it("--config", str(self.config)),
            (1, f"{self.config}:5: writer influxdb: 'database' is missing"),
        )
        self.write(collectors=["127.0.0.1"])
        status, said = self.run_it("--config", str(self.config))
        self.assertEqual(status, 1)
        self.assertIn("'writers'", said)

    def test_no_spool(self) -> None:
        """A spool's path where something else is; it is as it was."""
        path = self.directory / "spool.db"
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE precious (x)")
        db.close()
        self.write(
            collectors=["127.0.0.1"],
            writers=[{"type": "file", "path": "x"}],
            spool={"path": "spool.db"},
        )
        status, said = self.run_it("--config", str(self.config))
        self.assertEqual(status, 1)
        self.assertEqual(
            said, f"{path} is another program's database: give the spool a path of its own"
        )
        self.assertIn("spool.db", os.listdir(self.directory))

    def test_address_in_use(self) -> None:
        """An API address that is taken is said as such."""
        _, url = self.collector("one")
        taken = url.removeprefix("http://")
        self.write(
            collectors=["127.0.0.1"], writers=[{"type": "file", "path": "x"}], api={"bind": taken}
        )
        status, said = self.run_it("--config", str(self.config))
        self.assertEqual(status, 1)
        self.assertIn("Address already in use", said)

    def test_cannot_start(self) -> None:
        """What goes wrong while it starts ends it, for its supervisor to see."""
        self.write(
            collectors=["127.0.0.1"],
            writers=[{"type": "file", "path": "x"}],
            api={"bind": f"127.0.0.1:{free_port()}"},
        )
        command = twistd("llama-scraper", "--config", str(self.config))
        at = command.index("-c") + 1
        command[at] = (
            "from llama.scraper.delivery import Delivery; Delivery.start = None; " + command[at]
        )
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.assertEqual(done.returncode, 1)
        self.assertIn("the scraper cannot start, and ends", done.stdout)


class SignalTests(ProcessCase):
    """SIGTERM and SIGHUP."""

    async def test_reload_and_stop(self) -> None:
        """SIGHUP applies a difference or refuses a mistake; SIGTERM ends it cleanly."""
        one, one_url = self.collector("one")
        two, two_url = self.collector("two")
        store = self.directory / "store.db"
        sections: dict[str, Any] = {
            "collectors": [one_url],
            "writers": [{"type": "sqlite", "path": "store.db"}],
            "spool": {"path": "spool.db"},
            "api": {"bind": f"127.0.0.1:{free_port()}"},
        }
        self.write(**sections)
        one.close(NOW)
        two.close(NOW)
        self.start()
        await until(lambda: sqlite_rows(store, "one") == one.ledger, "the first")
        assert self.process is not None
        self.write(**sections | {"writers": [{"type": "sqlite"}]})
        self.process.send_signal(signal.SIGHUP)
        await self.logged("not reloaded: ")
        self.assertIn("writer sqlite: 'path' is missing", self.log.read_text())
        self.write(**sections | {"collectors": [two_url]})
        self.config.write_text(self.config.read_text().rstrip())  # as if more were to come
        self.process.send_signal(signal.SIGHUP)
        await self.logged(": ends amid a line: is it still being written?")
        self.write(**sections | {"collectors": [one_url, two_url]})
        self.process.send_signal(signal.SIGHUP)
        await until(lambda: sqlite_rows(store, "two") == two.ledger, "the second")
        one.close(NOW + 30)
        await until(lambda: sqlite_rows(store, "one") == one.ledger, "the next of the first")
        self.assertEqual(one.questions.count(""), 1)
        self.assertEqual(self.end(signal.SIGTERM), -signal.SIGTERM)  # as twistd ends
        self.assertNotIn("Traceback", self.log.read_text())


class RemovedTests(ProcessCase):
    """Files that are removed while the scraper has them open."""

    async def test_store_and_spool(self) -> None:
        """Both are made anew, with their directory, and every interval arrives there."""
        one, url = self.collector("one")
        below = self.directory / "below"
        store = below / "store.db"
        self.write(
            collectors=[url],
            writers=[{"type": "sqlite", "path": "below/store.db", "name": "db"}],
            spool={"path": "below/spool.db"},
            api={"bind": f"127.0.0.1:{free_port()}"},
        )
        one.close(NOW)
        self.start()
        await until(lambda: sqlite_rows(store, "one") == one.ledger, "the first")
        shutil.rmtree(below)
        for n in range(1, 4):
            one.close(NOW + 30 * n)
            await deferLater(reactor, 0.3)
        await until(lambda: sqlite_rows(store, "one") == one.ledger, "all of them, again")
        self.assertEqual(one.questions.count(""), 2)
        self.assertEqual(self.end(signal.SIGTERM), -signal.SIGTERM)
        log = self.log.read_text()
        self.assertIn(f"spool: {below}/spool.db was removed while it was in use", log)
        self.assertIn(f"writer db cannot write: {store} was removed: it is opened anew", log)
        self.assertIn("the spool takes points again", log)
        self.assertNotIn("Traceback", log)


class KilledTests(ProcessCase):
    """kill -9, twenty times, at moments that nobody chose."""

    timeout = 300

    async def test_every_interval_once(self) -> None:
        """Every interval of every collector is in both databases exactly once."""
        server = Influx("admin", "secret")
        server.start()
        self.addCleanup(server.stop)
        collectors = [self.collector(f"c{n}") for n in range(3)]
        self.write(
            interval=0.1,
            collectors=[url for _, url in collectors],
            writers=[
                {"type": "influxdb", "url": server.url, "database": "llama", "create": True,
                 "username": "admin", "password": "secret"},
                {"type": "sqlite", "path": "store.db"},
            ],
            spool={"path": "spool.db"},
            api={"bind": f"127.0.0.1:{free_port()}"},
        )  # fmt: skip
        closing = LoopingCall(lambda: [c.close(NOW + 30 * len(c.ledger)) for c, _ in collectors])
        closing.start(0.05)
        self.addCleanup(lambda: closing.running and closing.stop())
        seed = random.randrange(10**6)
        draw = random.Random(seed)
        asked_while = 0
        for _ in range(20):
            before = sum(len(c.questions) for c, _ in collectors)
            self.start()
            await until(lambda n=before: sum(len(c.questions) for c, _ in collectors) > n, "a poll")  # type: ignore[misc]
            asked_while += 1
            await deferLater(reactor, draw.uniform(0, 0.6))
            self.end(signal.SIGKILL)
        closing.stop()
        self.start()
        store = self.directory / "store.db"
        ledgers: dict[str, Ledger] = {c.name: c.ledger for c, _ in collectors}
        readers: dict[str, Callable[[str], Ledger]] = {
            "InfluxDB": lambda name: influx_rows(server, name),
            "the embedded store": lambda name: sqlite_rows(store, name),
        }
        for (name, ledger), (where, read) in product(ledgers.items(), readers.items()):
            try:
                await until(lambda r=read, n=name, w=ledger: r(n) == w, "all in the database")  # type: ignore[misc]
            except AssertionError as error:
                got = read(name)
                self.fail(
                    f"{error}: {where} has {len(got)} of {len(ledger)} points of {name}, seed {seed},"
                    f" others {len(got.keys() - ledger)}; log:\n{self.log.read_text()[-4000:]}"
                )
        written = sum(map(len, ledgers.values()))
        print(f"killed 20 times (seed {seed}): lost 0, duplicated 0, written {written} points")
        self.assertGreater(written, 1000)
        self.assertEqual(asked_while, 20)
        self.assertEqual(self.end(signal.SIGTERM), -signal.SIGTERM)  # as twistd ends
        self.assertNotIn("corrupt", " ".join(os.listdir(self.directory)))

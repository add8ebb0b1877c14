"""Asking collectors over real HTTP: cursors, old collectors, and those that misbehave."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from time import time as unix_time_s
from typing import Any

from fake_collector import FakeCollector
from scraper_case import NOW, until
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import deferLater
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import TestCase
from twisted.web.client import HTTPConnectionPool

from llama.http.client import agent_of
from llama.scraper import poll
from llama.scraper.buffer import Chunk, MemorySpool, NotStoredError, Taken
from llama.scraper.counts import Counts
from llama.scraper.poll import CollectorPoll, Poller
from llama.scraper.remarks import Remarks


class PollCase(TestCase):
    """A poller over a spool in memory."""

    def setUp(self) -> None:
        """Make a spool and nothing to ask yet."""
        self.spool = MemorySpool()
        self.spool.open(["db"])
        self.counts = Counts()
        self.chunks: list[Chunk] = []
        self.collectors: list[FakeCollector] = []
        self.pool = HTTPConnectionPool(reactor)
        self.poller = self.make()

    def make(self, **settings: Any) -> Poller:
        """Make a poller with other settings."""
        given = {"interval_s": 0.1, "timeout_s": 0.5, "concurrency": 4} | settings
        return Poller(
            reactor, agent_of(reactor, self.pool, 0.5, None), self.spool, self.counts,
            self.chunks.extend, **given,
        )  # fmt: skip

    async def tearDown(self) -> None:
        """Stop everything."""
        await self.poller.stop()
        for collector in self.collectors:
            await collector.stop()
        await self.pool.closeCachedConnections()

    def collector(self, name: str) -> tuple[FakeCollector, str]:
        """Return a collector that listens, and its URL."""
        collector = FakeCollector(name)
        self.collectors.append(collector)
        return collector, collector.listen(reactor)

    async def points(self) -> Sequence[Any]:
        """Return all points taken so far."""
        return [point for chunk in self.chunks for point in await self.spool.read(chunk) or ()]

    async def times(self) -> list[int]:
        """Return their times, Unix seconds, in the order they came."""
        return [point.time_ns // 10**9 for point in await self.points()]

    def polls(self, url: str, result: str) -> float:
        """Return how often a collector was asked with that result."""
        labels = {"collector": url, "result": result}
        return self.counts.registry.get_sample_value("llama_scraper_polls_total", labels) or 0.0


class CursorTests(PollCase):
    """Collectors that know cursors."""

    async def test_everything_once(self) -> None:
        """First all that is held, then only what closed since; nothing twice, nothing missed."""
        collector, url = self.collector("one")
        collector.close(NOW, pairs=2)
        collector.close(NOW + 30, pairs=2)
        self.poller.set_collectors([url])
        await until(lambda: self.polls(url, "ok") >= 3, "polls")
        collector.close(NOW + 60, pairs=2)
        collector.close(NOW + 90, pairs=2)
        await until(lambda: len(self.chunks) == 2, "the next")
        self.assertEqual(await self.times(), [NOW + n for n in (0, 0, 30, 30, 60, 60, 90, 90)])
        self.assertEqual(collector.questions[0], "")
        self.assertEqual(set(collector.questions[1:]), {"a1:2", "a1:4"} & set(collector.questions))
        self.assertEqual(self.spool.taken(url), Taken("a1:4", (NOW + 90) * 10**9))
        self.assertGreater(self.poller.collectors[url].lag_s, 1000)

    async def test_restarted(self) -> None:
        """A collector that starts anew is asked on, and gives what it has since."""
        collector, url = self.collector("one")
        collector.close(NOW, pairs=1)
        self.poller.set_collectors([url])
        await until(lambda: self.chunks, "the first")
        collector.restart()
        collector.close(NOW + 30, pairs=1)
        await until(lambda: len(self.chunks) == 2, "the next")
        self.assertEqual(await self.times(), [NOW, NOW + 30])

    async def test_strange_cursors(self) -> None:
        """A cursor is opaque: whatever characters it has, it comes back as it was."""
        collector, url = self.collector("one")
        collector.incarnation = "a+b&c=d e%/é?"
        self.poller.set_collectors([url])
        await until(lambda: len(collector.questions) > 1, "polls")
        self.assertEqual(collector.questions[1], "a+b&c=d e%/é?:0")

    async def test_not_stored(self) -> None:
        """While the spool cannot, the cursor stays, few questions are asked, and nothing is lost."""
        collector, url = self.collector("one")
        collector.close(NOW, pairs=1)
        put = self.spool.put
        self.spool.trouble = "the disk is full"
        self.spool.put = lambda *_: fail(NotStoredError("the disk is full"))  # type: ignore[method-assign]
        self.poller.set_collectors([url])
        await until(lambda: self.polls(url, "spool_full") >= 3, "polls")
        collector.close(NOW + 30, pairs=1)
        self.assertEqual(len(collector.questions), 1)
        self.spool.put = put  # type: ignore[method-assign]
        self.spool.trouble = None
        await until(lambda: self.chunks, "points")
        self.assertEqual(await self.times(), [NOW, NOW + 30])
        self.assertEqual(set(collector.questions), {"", "a1:2"} & set(collector.questions))

    async def test_collectors_change(self) -> None:
        """Collectors can come and go while the others are asked on."""
        one, first = self.collector("one")
        two, second = self.collector("two")
        self.poller.set_collectors([first])
        await until(lambda: one.questions, "the first")
        call = self.poller.collectors[first]
        self.poller.set_collectors([first, second])
        await until(lambda: two.questions, "the second")
        self.assertIs(self.poller.collectors[first], call)
        self.poller.set_collectors([second])
        asked = len(one.questions)
        await deferLater(reactor, 0.3)
        self.assertLessEqual(len(one.questions), asked + 1)
        self.assertEqual(list(self.poller.collectors), [second])

    async def test_counters_of_one_that_left(self) -> None:
        """They are shown no more, whatever it was counted for; those of others are."""
        good, url = self.collector("good")
        good.close(NOW)
        bad, other = self.collector("bad")
        bad.close(NOW)
        bad.closed[0][1].append({})
        self.poller.set_collectors([url, other, "http://127.0.0.1:1"])
        await until(lambda: self.polls(url, "ok"), "a good answer")
        await until(lambda: self.polls("http://127.0.0.1:1", "no_answer"), "none")
        rejected = {"collector": other, "reason": "malformed"}
        value = self.counts.registry.get_sample_value
        await until(lambda: value("llama_scraper_points_rejected_total", rejected), "a bad one")
        self.poller.set_collectors([url])

        def shown() -> set[str]:
            families = self.counts.registry.collect()
            return {sample.labels["collector"] for family in families for sample in family.samples}

        await until(lambda: shown() == {url}, "the others to leave")
        self.assertGreater(self.polls(url, "ok"), 0)
        self.poller.set_collectors([url, other])
        self.assertEqual(value("llama_scraper_points_taken_total", {"collector": other}), 0)

    async def test_one_name(self) -> None:
        """Two collectors that call themselves the same are said, once; a URL that was replaced is not."""
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)

        def said() -> list[str]:
            texts = (formatEvent(event) or "" for event in events)
            return [text for text in texts if "both measure as 'localhost'" in text]

        first, url = self.collector("localhost")
        first.close(NOW)
        self.poller.set_collectors([url])
        missed = {"collector": url}
        value = self.counts.registry.get_sample_value
        self.assertEqual(value("llama_scraper_intervals_missed_total", missed), 0.0)
        await until(lambda: self.polls(url, "ok") > 0, "the first")
        second, other = self.collector("localhost")
        second.close(NOW)
        self.poller.set_collectors([other])
        await until(lambda: self.polls(other, "ok") > 0, "what replaced it")
        self.assertEqual(said(), [])
        first.close(NOW + 30)
        self.poller.set_collectors([url, other])
        await until(lambda: len(self.poller.names) == 2, "its name")
        second.close(NOW + 30)
        await until(said, "the warning")
        self.assertIn(f"collectors {other} and {url} both", said()[0])
        first.close(NOW + 60)
        await until(lambda: self.polls(url, "ok") > 4, "another answer")
        self.assertEqual(len(said()), 1)
        self.assertIn("source_tags: {src_hostname: ...}, which takes a file of the full", said()[0])

    async def test_reflectors_of_one_name(self) -> None:
        """Two reflectors whose figures overwrite each other's are said, and none else of a host."""
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)

        def said() -> list[str]:
            texts = (formatEvent(event) or "" for event in events)
            return [text for text in texts if " both " in text]

        first = {"src_hostname": "localhost", "port": "8100"}
        urls: list[str] = []

        def close(n: int, time_s: int, tags: dict[str, str]) -> None:
            self.collectors[n].close(time_s, pairs=1)
            if tags:
                self.collectors[n].closed[-1][1][0] |= {
                    "measurement": "reflector_stats",
                    "tags": tags,
                }

        others: list[dict[str, str]] = [{}, {**first, "port": "862"}, {**first, "rack": "2"}]
        for n, tags in enumerate((*others, first, first)):
            urls.append(self.collector("localhost")[1])
            close(n, NOW, tags)
            self.poller.set_collectors(urls)
            await until(lambda n=n: len(self.poller.names) == n + 1, "its name")  # type: ignore[misc]
        for n, tags in enumerate((*others, first)):
            close(n, NOW + 30, tags)
            await until(lambda n=n: self.collectors[n].questions[-1] == "a1:2", "its answer")  # type: ignore[misc]
        await until(said, "the warning")
        (text,) = said()
        what = "'port=8100, src_hostname=localhost'"
        self.assertIn(f"reflectors {urls[3]} and {urls[4]} both are {what}", text)
        self.assertIn("stats: {tags: {src_hostname: ...}}", text)

    async def test_token(self) -> None:
        """A bearer token is shown to every collector."""
        await self.poller.stop()
        self.poller = self.make(token="s3cret")
        collector, url = self.collector("one")
        self.poller.set_collectors([url])
        await until(lambda: collector.questions, "a poll")
        self.assertEqual(collector.authorizations, {"Bearer s3cret"})


class OldCollectorTests(PollCase):
    """Collectors of dropbox/llama, which know neither cursors nor, some of them, the time."""

    async def test_newest_interval_once(self) -> None:
        """Without cursors the newest interval is asked for, and taken once; which is said."""
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        collector, url = self.collector("old")
        collector.cursors = False
        collector.close(NOW, pairs=2)
        self.poller.set_collectors([url])
        await until(lambda: self.polls(url, "ok") >= 3, "polls")
        collector.close(NOW + 30, pairs=2)
        await until(lambda: len(self.chunks) == 2, "the next")
        self.assertEqual(await self.times(), [NOW, NOW, NOW + 30, NOW + 30])
        self.assertEqual(collector.questions[0], "")
        self.assertEqual(set(collector.questions[1:]), {None})
        self.assertTrue(self.poller.collectors[url].plain)
        said = "it gives no Llama-Cursor: only its newest interval can be taken"
        self.assertEqual([e["what"] for e in events if "what" in e], [said])

    async def test_no_time_and_no_rtt(self) -> None:
        """Points get an aligned time of the scrape, total loss loses its rtt of zero; said once."""
        collector, url = self.collector("old")
        collector.cursors = False
        collector.close(NOW, pairs=2, rtt=0.0, loss=100.0, lost=30.0)
        for point in collector.closed[-1][1]:
            point["time"] = "0001-01-01T00:00:00Z"
        await self.poller.stop()
        self.poller = self.make(interval_s=0.2)
        before = unix_time_s()
        self.poller.set_collectors([url])
        await until(lambda: len(self.chunks) >= 3, "polls")
        points = await self.points()
        times = [point.time_ns / 1e9 for point in points[::2]]
        self.assertEqual(times, sorted(set(times)))
        for time in times:
            self.assertAlmostEqual(time / 0.2, round(time / 0.2), places=3)
            self.assertLess(abs(time - before), 30)
        self.assertEqual(
            points[0].fields,
            {"loss": 100.0, "lost": 30.0, "sent": 30.0, "received": 30.0, "rtt_p99": 3.5,
             "suspect": 0.0},
        )  # fmt: skip
        self.assertEqual(len(self.poller.collectors[url]._remarks._said), 3)

    async def test_our_clock_was_ahead(self) -> None:
        """A scraper that once ran with a clock far ahead takes points again when it is right."""
        collector, url = self.collector("old")
        collector.cursors = False
        collector.close(NOW, pairs=1)
        collector.closed[-1][1][0]["time"] = "0001-01-01T00:00:00Z"
        newest = []
        for offset_s in (0, 30 * 86400, 0):
            await self.poller.stop()
            self.poller = self.make(unix_time_s=lambda o=offset_s: unix_time_s() + o)
            self.poller.set_collectors([url])
            before = len(self.chunks)
            await until(lambda n=before: len(self.chunks) >= n + 3, f"points, {offset_s} s ahead")  # type: ignore[misc]
            newest.append(self.chunks[-1].newest_ns / 1e9 - unix_time_s())
        for found, offset_s in zip(newest, (0, 30 * 86400, 0), strict=True):
            self.assertLess(abs(found - offset_s), 30)

    async def test_its_clock_was_ahead(self) -> None:
        """One interval from the future does not hide those that come after it; it is said once."""
        collector, url = self.collector("old")
        collector.cursors = False
        future = int(unix_time_s()) + 30 * 86400
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        self.poller.set_collectors([url])
        for n, time in enumerate((NOW, future, NOW + 30, NOW + 60)):
            collector.close(time, pairs=1)
            await until(lambda t=time: self.has(t), f"interval {n}")  # type: ignore[misc]
        said = [formatEvent(e) for e in events if "in the future" in e.get("log_format", "")]
        self.assertEqual(len(said), 1)
        self.assertGreater(self.poller.collectors[url].lag_s, 0)
        self.assertGreater(self.polls(url, "ok"), 3)

    async def test_its_clock_stays_ahead(self) -> None:
        """What a clock that is ahead stamps is taken once, and a repetition is one there, too."""
        self.patch(poll, "STALE_S", 0.0)  # then ten intervals
        collector, url = self.collector("old")
        collector.cursors = False
        future = int(unix_time_s()) + 3600
        collector.close(future, pairs=2)
        self.poller.set_collectors([url])
        await until(lambda: self.polls(url, "stale"), "the complaint")
        self.assertEqual(await self.times(), [future] * 2)
        collector.close(future - 60, pairs=1)
        await until(lambda: self.has(future - 60), "an older one")
        self.assertIsNone(self.poller.collectors[url].trouble)
        self.poller.set_collectors([])
        self.poller.set_collectors([url])  # which remembers no more than the spool
        asked = len(collector.questions)
        await until(lambda: len(collector.questions) > asked + 3, "polls")
        collector.close(future + 300, pairs=1)
        await until(lambda: self.has(future + 300), "a newer one")
        self.assertEqual(await self.times(), [future, future, future - 60, future + 300])

    async def test_ahead_and_not_stored(self) -> None:
        """What the spool could not take is no repetition when it comes again."""
        collector, url = self.collector("old")
        collector.cursors = False
        future = int(unix_time_s()) + 3600
        collector.close(future, pairs=1)
        self.poller.set_collectors([url])
        await until(lambda: self.has(future), "a point")
        put = self.spool.put
        self.spool.put = lambda *_: fail(NotStoredError("the disk is full"))  # type: ignore[method-assign]
        collector.close(future + 30, pairs=1)
        await until(lambda: self.polls(url, "spool_full") >= 2, "refusals")
        self.spool.put = put  # type: ignore[method-assign]
        await until(lambda: self.has(future + 30), "the next")
        self.assertEqual(await self.times(), [future, future + 30])

    def has(self, time_s: int) -> bool:
        """Say whether an interval was taken."""
        return any(chunk.newest_ns == time_s * 10**9 for chunk in self.chunks)

    async def test_nothing_new(self) -> None:
        """A collector that repeats itself for long is said to be stuck, until something new comes."""
        self.patch(poll, "STALE_S", 0.0)  # then ten intervals
        await self.poller.stop()
        self.poller = self.make(interval_s=0.05)
        collector, url = self.collector("old")
        collector.cursors = False
        collector.close(NOW, pairs=1)
        self.poller.set_collectors([url])
        await until(lambda: self.polls(url, "stale") >= 2, "the complaint")
        self.assertGreaterEqual(self.polls(url, "ok"), 5)
        self.assertIn("nothing new for", self.poller.collectors[url].trouble or "")
        collector.close(NOW + 30, pairs=1)
        await until(lambda: self.poller.collectors[url].trouble is None, "the end of trouble")
        self.assertEqual(await self.times(), [NOW, NOW + 30])

    async def test_upgraded(self) -> None:
        """A collector that learns about cursors is asked for all that it holds."""
        collector, url = self.collector("old")
        collector.cursors = False
        collector.close(NOW, pairs=1)
        self.poller.set_collectors([url])
        await until(lambda: self.polls(url, "ok") >= 2, "polls")
        collector.close(NOW + 30, pairs=1)
        collector.close(NOW + 60, pairs=1)
        collector.cursors = True
        await until(lambda: self.spool.taken(url).cursor == "a1:3", "the cursor")
        self.assertEqual(set(await self.times()), {NOW, NOW + 30, NOW + 60})


class MisbehavedTests(PollCase):
    """Collectors that hang, lie or flood never hold the others."""

    async def others_go_on(self, behaviour: str, result: str) -> None:
        """See a healthy collector served while half a dozen others misbehave, which end well."""
        good, good_url = self.collector("good")
        bad = [self.collector(f"bad{n}") for n in range(6)]
        for collector, _ in bad:
            collector.behave = behaviour
            collector.close(NOW, pairs=1)
        self.poller.set_collectors([good_url, *(url for _, url in bad)])
        await until(
            lambda: all(self.polls(url, result) >= 1 for _, url in bad), f"{behaviour} noticed"
        )
        asked = self.polls(good_url, "ok")
        for n in range(3):
            good.close(NOW + 30 * n, pairs=1)
            await until(lambda n=n: len(self.chunks) == n + 1, "the good one's points")  # type: ignore[misc]
        self.assertGreater(self.polls(good_url, "ok"), asked)
        self.assertEqual({chunk.collector for chunk in self.chunks}, {good_url})
        for collector, url in bad:
            self.assertIsNotNone(self.poller.collectors[url].trouble)
            collector.behave = "well"
        await until(lambda: len(self.chunks) == 9, "the others' points")
        await until(
            lambda: all(self.poller.collectors[url].trouble is None for _, url in bad),
            "the end of trouble",
        )

    def said(self) -> Callable[[], list[str]]:
        """Return what gives the lines that are logged from now on."""
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        return lambda: [formatEvent(event) or "" for event in events]

    async def test_numbers_that_are_none(self) -> None:
        """Nonsense in a header is said once and ignored; the points are taken, and handed on."""
        said = self.said()
        for n, value in enumerate(
            (b"9" * 400, b"9" * 5000, b"-1", b"1e9", b"", b"\xff", b"\xd9\xa3")
        ):
            for name in (b"Llama-Missed", b"Llama-More"):
                collector, url = self.collector(f"{name.decode()}{n}")
                collector.close(NOW, pairs=1)
                collector.headers = [(name, value)]
                self.poller.set_collectors([url])
                await until(lambda u=url: self.polls(u, "ok") >= 3, "polls")  # type: ignore[misc]
                self.assertEqual(len(collector.questions), len(set(collector.questions)) + 1)
                self.assertEqual([c.collector for c in self.chunks if c.collector == url], [url])
                self.assertEqual(self.polls(url, "error"), 0)
                lines = [line for line in said() if url in line]
                self.assertEqual(
                    lines, [f"collector {url}: its header {name.decode()} is no number, or several,"
                            " and is not believed"],
                )  # fmt: skip

    async def test_repeated_headers(self) -> None:
        """What is said twice in the same words is said once; what differs is not believed."""
        said = self.said()
        collector, url = self.collector("twice")
        collector.close(NOW, pairs=1)
        collector.headers = [(b"Llama-Missed", b"3"), (b"Llama-Missed", b"3")]
        self.poller.set_collectors([url])
        await until(lambda: self.chunks, "points")
        missed = self.counts.registry.get_sample_value
        labels = {"collector": url}
        await until(lambda: missed("llama_scraper_intervals_missed_total", labels), "the count")
        self.assertEqual(missed("llama_scraper_intervals_missed_total", labels), 3.0)
        self.assertEqual(len([line for line in said() if ": 3 closed intervals" in line]), 1)
        collector.headers = [(b"Llama-Cursor", b"another")]
        await until(lambda: self.polls(url, "garbage"), "the complaint")
        self.assertEqual(self.poller.collectors[url].trouble, "2 cursors that differ")

    async def test_cursors_that_are_none(self) -> None:
        """A cursor that could not be given back as it came is told as its collector's fault."""
        for value, problem in (
            (b"\xff:1", "a cursor that is no UTF-8"),
            (b"a\0:1", "a cursor with a NUL in it"),
            (b"x" * 1025, "a cursor of 1025 characters"),
            (b"x" * 9000, "a cursor of 9000 octets"),
        ):
            collector, url = self.collector("strange")
            collector.cursors = False
            collector.close(NOW, pairs=1)
            collector.headers = [(b"Llama-Cursor", value)]
            self.poller.set_collectors([url])
            await until(lambda u=url: self.polls(u, "garbage"), problem)  # type: ignore[misc]
            self.assertEqual(self.poller.collectors[url].trouble, problem)
        self.assertEqual(self.chunks, [])

    async def test_nothing_is_stranded(self) -> None:
        """What is in the spool is handed on before anything else can fail."""

        def fails(*_: Any) -> None:
            raise ArithmeticError("amid the turn")

        self.patch(Remarks, "missed", fails)
        collector, url = self.collector("one")
        collector.close(NOW, pairs=1)
        self.poller.set_collectors([url])
        await until(lambda: self.polls(url, "error"), "the fault")
        self.assertEqual([chunk.collector for chunk in self.chunks], [url])
        self.assertEqual(list(self.spool.chunks.values()), self.chunks)
        await self.poller.stop()
        self.assertEqual({type(f.value) for f in self.flushLoggedErrors()}, {ArithmeticError})

    async def test_redirect(self) -> None:
        """A collector that sends us to another server is told so, and that server is not asked."""
        other, elsewhere = self.collector("other")
        collector, url = self.collector("leads")
        collector.behave = elsewhere
        self.poller.set_collectors([url])
        await until(lambda: self.polls(url, "garbage"), "the complaint")
        self.assertIn(f"a redirect to {elsewhere}", self.poller.collectors[url].trouble or "")
        self.assertEqual(other.questions, [])

    async def test_hanging(self) -> None:
        """They accept the question and never answer."""
        await self.others_go_on("hang", "no_answer")

    async def test_half_an_answer(self) -> None:
        """They begin to answer and stop in the middle."""
        await self.others_go_on("half", "no_answer")

    async def test_garbage(self) -> None:
        """They answer something else."""
        await self.others_go_on("garbage", "garbage")

    async def test_errors(self) -> None:
        """They answer with an error."""
        await self.others_go_on("error", "garbage")

    async def test_nobody_there(self) -> None:
        """A collector that is not there is noticed, and taken from once it is."""
        _, good_url = self.collector("good")
        self.poller.set_collectors(["http://127.0.0.1:1", good_url])
        await until(lambda: self.polls("http://127.0.0.1:1", "no_answer") >= 2, "two refusals")
        self.assertEqual(self.poller.collectors["http://127.0.0.1:1"].trouble, "connection refused")

    async def test_skipped_turns(self) -> None:
        """While a question is under way no other is asked, and the turns missed are counted."""
        collector, url = self.collector("slow")
        collector.behave = "hang"
        self.poller.set_collectors([url])
        await until(lambda: self.polls(url, "skipped") >= 3, "skipped turns")
        self.assertLessEqual(len(collector.questions), 3)

    async def test_too_large(self) -> None:
        """A backlog that is too large is given up, the newest interval taken, and it goes on."""
        await self.poller.stop()
        self.poller = self.make(max_answer=2_000_000)
        collector, url = self.collector("big")
        collector.close(NOW, pairs=1)
        collector.close(NOW + 30, pairs=1)
        collector.behave = "large"
        self.poller.set_collectors([url])
        await until(lambda: self.chunks, "the newest interval")
        collector.behave = "well"
        self.assertEqual(await self.times(), [NOW + 30])
        self.assertEqual(self.polls(url, "oversized"), 2)  # the second was to be one interval
        collector.close(NOW + 60, pairs=1)
        await until(lambda: len(self.chunks) == 2, "the next")
        self.assertEqual(await self.times(), [NOW + 30, NOW + 60])

    async def test_larger_than_the_spool(self) -> None:
        """One interval that the spool has no room for is passed over, said and counted."""
        await self.poller.stop()
        self.spool = MemorySpool(max_octets=20_000)
        await self.spool.open(["db"])
        self.poller = self.make()
        collector, url = self.collector("big")
        for n, pairs in enumerate((5, 10_000, 5)):
            collector.close(NOW + 30 * n, pairs=pairs)
        self.poller.set_collectors([url])
        await until(lambda: self.spool.taken(url).cursor == "a1:3", "the newest interval")
        self.assertEqual({*await self.times()}, {NOW, NOW + 60})
        await until(lambda: self.poller.collectors[url].trouble is None, "the end of trouble")
        missed = self.counts.registry.get_sample_value
        labels = {"collector": url}
        self.assertEqual(missed("llama_scraper_intervals_missed_total", labels), 1.0)

    async def narrow(self, url_limits: bool) -> None:
        """See a backlog come through a link on which it takes far longer than the timeout."""
        await self.poller.stop()
        self.poller = self.make(timeout_s=0.2)
        collector, url = self.collector("narrow")
        collector.limits = url_limits
        for n in range(20):
            collector.close(NOW + 30 * n, pairs=5)
        octets = len(json.dumps(collector.closed[0][1]))
        collector.octets_per_s = 10 * octets  # an interval in 0.1 s, all in 2 s
        self.poller.set_collectors([url])
        await until(lambda: self.spool.taken(url).cursor == "a1:20", "all of the backlog")
        self.assertEqual(await self.times(), [NOW + 30 * n for n in range(20) for _ in range(5)])
        await until(lambda: self.poller.collectors[url].trouble is None, "the end of trouble")

    async def test_narrow_link(self) -> None:
        """After an absence, what is held comes piece by piece, however narrow the link."""
        await self.narrow(True)
        self.assertGreaterEqual(len(self.chunks), 5)

    async def test_narrow_link_without_limit(self) -> None:
        """A collector that knows no limit may take its time, as long as something comes."""
        await self.narrow(False)

    async def test_endless(self) -> None:
        """An answer that trickles without an end is given up, and others asked meanwhile."""
        self.patch(poll, "LONGEST_ANSWER_S", 0.8)
        collector, url = self.collector("trickle")
        _, good_url = self.collector("good")
        collector.close(NOW)
        collector.octets_per_s = 50
        self.poller.set_collectors([url, good_url])
        await until(lambda: self.polls(url, "no_answer") >= 2, "two that were given up")
        self.assertEqual(self.poller.collectors[url].trouble, "no answer within 0.8 s")
        self.assertGreater(self.polls(good_url, "ok"), 5)

    async def recovers(self) -> str:
        """Return the URL of a collector that answers again after it was in trouble."""
        collector, url = self.collector("recovers")
        collector.behave = "error"
        collector.close(NOW, pairs=1)
        self.poller.set_collectors([*self.poller.collectors, url])
        await until(lambda: self.poller.collectors[url].trouble, "trouble")
        collector.behave = "well"
        await until(lambda: self.spool.taken(url).cursor, "its points")
        return url

    async def test_backlogs_hold_up_nobody(self) -> None:
        """Who catches up over a narrow link lets others that were in trouble have their turns."""
        await self.poller.stop()
        self.poller = self.make(timeout_s=0.2)  # one place for those in trouble
        collector, url = self.collector("narrow")
        for n in range(100):
            collector.close(NOW + 30 * n, pairs=5)
        collector.octets_per_s = 10 * len(json.dumps(collector.closed[0][1]))
        self.poller.set_collectors([url])
        await until(lambda: self.polls(url, "no_answer"), "trouble")
        await until(lambda: self.spool.taken(url).cursor, "an interval")
        self.assertIsNone(self.poller.collectors[url].trouble)
        await self.recovers()
        cursor = self.spool.taken(url).cursor or ""
        self.assertLess(int(cursor.removeprefix("a1:")), 50)
        await until(lambda: self.spool.taken(url).cursor != cursor, "the next interval")
        self.assertEqual(self.polls(url, "no_answer"), 1)  # one at a time all along

    async def test_trickles_hold_up_nobody(self) -> None:
        """Answers that come an octet at a time, for minutes, leave the lane to others."""
        urls = []
        for n in range(4):
            collector, url = self.collector(f"trickle{n}")
            collector.close(NOW)
            collector.octets_per_s = 50
            urls.append(url)
        self.poller.set_collectors(urls)
        await until(lambda: all(self.polls(url, "no_answer") for url in urls), "trouble")
        for _ in range(3):
            url = await self.recovers()
            self.poller.set_collectors(urls)
        self.assertEqual(self.polls(url, "error"), 0)
        self.assertEqual([self.polls(url, "no_answer") for url in urls], [1.0] * 4)

    async def test_among_many_dead(self) -> None:
        """One among many that hang has its turns soon: the first, and the next after it failed once."""
        await self.poller.stop()
        self.poller = self.make(timeout_s=1.0)
        dead, dead_url = self.collector("dead")
        dead.behave = "hang"
        good, good_url = self.collector("good")
        good.close(NOW, pairs=1)
        many = [f"{dead_url}/{n}" for n in range(60)]
        self.poller.set_collectors(many)
        await until(lambda: dead.questions, "their turns")
        self.poller.set_collectors([*many, good_url])
        await until(lambda: self.polls(good_url, "ok"), "its first turn", 10)  # not 15 s
        await until(lambda: all(self.polls(url, "no_answer") for url in many), "trouble")
        good.behave = "error"
        await until(lambda: self.polls(good_url, "garbage"), "its trouble")
        good.behave = "well"
        asked = self.polls(good_url, "ok")
        await until(lambda: self.polls(good_url, "ok") > asked, "its next turn", 30)  # not 60 s

    async def test_thousands_wait_for_a_spool(self) -> None:
        """Where nothing can be taken, all that wait for a turn get it, however many they are."""
        await self.poller.stop()
        self.poller = self.make(timeout_s=1000.0, interval_s=60.0, concurrency=1)
        collector, url = self.collector("slow")
        collector.behave = "hang"
        many = [f"{url}/{n}" for n in range(300)]
        for n, each in enumerate(many):
            self.poller.collectors[each] = CollectorPoll(each, self.poller, 0.0)
            self.poller.collectors[each]._turn(1)
            if n == 0:
                await until(lambda: collector.questions, "the question")
        self.spool.trouble = "the disk is full"
        collector.behave = "error"
        collector.hanging[0].transport.abortConnection()
        await until(lambda: self.polls(many[-1], "spool_full"), "its turn")
        self.assertEqual([self.polls(each, "error") for each in many], [0.0] * len(many))
        self.assertEqual([self.polls(each, "spool_full") for each in many[2:]], [1.0] * 298)

    async def test_stop_while_hanging(self) -> None:
        """Stopping does not wait for collectors that do not answer."""
        collector, url = self.collector("slow")
        collector.behave = "hang"
        await self.poller.stop()
        self.poller = self.make(timeout_s=1000.0)
        self.poller.set_collectors([url])
        await until(lambda: collector.questions, "the question")
        await self.poller.stop()
        self.assertEqual(self.poller.collectors, {})

    async def test_stop_beside_a_slow_disk(self) -> None:
        """Stopping waits for what is put, also if its collector is asked no more."""
        collector, url = self.collector("one")
        collector.close(NOW, pairs=1)
        on_disk: Deferred[None] = Deferred()
        begun, put = [], self.spool.put

        def slow(*given: Any) -> Deferred[Sequence[Chunk]]:
            begun.append(given)
            return on_disk.addCallback(lambda _: put(*given))

        self.spool.put = slow  # type: ignore[method-assign]
        self.poller.set_collectors([url])
        await until(lambda: begun, "points")
        self.poller.set_collectors([])
        stopping = Deferred.fromCoroutine(self.poller.stop())
        self.assertNoResult(stopping)
        on_disk.callback(None)
        await stopping
        self.assertEqual(len(self.chunks), 1)

"""Texts of others on terminals and in logs."""

from io import StringIO

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers

from llama.cli._names import namer
from llama.cli._report import Report
from llama.cli.trace import draw
from llama.collector.oneshot import Wanted
from llama.http.client import Reply, explain
from llama.paths import multipath
from llama.paths.trace import Path
from llama.printable import printable

BAD = "a\x1b[31m\x07\x9b1A\u202e\u2028\nb"


class Printable(SynchronousTestCase):
    @given(st.text())
    def test_any_text(self, text):
        """Whatever is printable stays, all else is one sign each."""
        shown = printable(text)
        self.assertTrue(shown.isprintable())
        self.assertEqual(len(shown), len(text))
        for before, after in zip(text, shown, strict=True):
            self.assertIn(after, (before, "\N{REPLACEMENT CHARACTER}"))

    def test_what_people_write(self):
        """Names in any script, and the signs of our own lines, are left alone."""
        for text in ("spine1 ×7 0.11 ms ■3 → leaf2", "Zürich 東京 — 5 %", "[fd00::1]:8100", ""):  # noqa: RUF001
            self.assertEqual(printable(text), text)

    def test_answers(self):
        """So are the answers, and the errors, of servers."""
        reply = Reply(500, Headers(), BAD.encode())
        self.assertTrue(reply.excerpt().isprintable())
        self.assertTrue(explain(ValueError(BAD), 1.0).isprintable())

    def test_names_by_reverse_dns(self):
        """And the names of routers, which their owners choose, where ``llama trace`` draws them."""
        self.patch(__import__("socket"), "gethostbyaddr", lambda _: (BAD, [], []))
        name = namer(None, resolve=True)
        path = Path(
            hops=("192.0.2.1",), complete=True, rtts_s=(0.1,), sent=(1,), answered=(1,), refusal=""
        )
        for width in (200, 10):
            out = StringIO()
            made = multipath.graph([(path, False)], "here", name)
            draw(made, Console(file=out, width=width))
            self.assertTrue(out.getvalue().replace("\n", "").isprintable(), out.getvalue())

    def test_sent(self):
        """And what ``llama send`` prints."""
        out = StringIO()
        wanted = Wanted(address="127.0.0.1", port=8100)
        Report(BAD, wanted, out).begin([4000])
        self.assertTrue(out.getvalue().rstrip("\n").isprintable(), out.getvalue())
        self.assertEqual(out.getvalue().count("\n"), 1)

"""What ``llama`` says to people who mistype: what is wrong, in a line, with a status; no traceback."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from unittest import SkipTest

from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from llama.cli import main
from llama.config.keys import read_urls
from llama.reflector.tap import Options

NOBODY = 65534


class MistakesTests(SynchronousTestCase):
    """Each is refused before anything is sent, bound or written."""

    def refused(self, status: int, said: str, *words: str) -> None:
        """Run a command, which must end with this status and say this in its last line."""
        done = CliRunner().invoke(main, words)
        self.assertIsInstance(done.exception, SystemExit, done.exc_info)
        self.assertIn(said, done.output.strip().splitlines()[-1])
        self.assertEqual(done.exit_code, status)

    def test_times(self) -> None:
        """Neither ``nan`` nor ``inf`` is a time."""
        self.refused(2, "nan is no time in seconds", "send", "127.0.0.1", "--timeout", "nan")
        for text in ("nan", "inf"):
            said = f"{text} is no time in seconds"
            self.refused(2, said, "send", "127.0.0.1", "--interval", text)
        self.refused(2, "nan is no time", "pinpoint", "c1:5000", "--interval", "nan")
        self.refused(2, "nan is no time", "pinpoint", "c1:5000", "--settle", "nan")
        self.refused(2, "-3.0 is not in the range", "pinpoint", "c1:5000", "--interval", "-3")

    def test_addresses(self) -> None:
        """What the configuration takes for no address to probe, the programs for people do not probe."""
        for command in ("send", "trace"):
            for target, said in (
                ("fe80::1", "'fe80::1' is link-local, expected the interface"),
                ("[FE80::1]:862", "'fe80::1' is link-local, expected the interface"),
                ("::ffff:192.0.2.1", "is an IPv4 address, expected 192.0.2.1"),
                ("ff02::1%lo", "is no address of one host"),
            ):
                self.refused(2, said, command, target)
            said = "'fe80::2' is link-local, expected the interface"
            self.refused(2, said, command, "fe80::1%lo", "--source", "fe80::2")

    def test_pinpoint(self) -> None:
        """A service says at its start, and not at its first incident, what it will not be able to do."""
        there = Path(self.mktemp())
        there.mkdir()
        for option in ("--state", "--record"):
            path = str(there / "nowhere" / "file")
            said = f"{option} {path}: there is no directory {there / 'nowhere'}"
            self.refused(1, said, "pinpoint", "c1:5000", option, path)
        words = ("pinpoint", "c1:5000", "--webhook", "http://example.net/\xfc")
        self.refused(2, "has letters beyond ASCII in it: they are written as xn--", *words)
        said = "'pager.example.net/x' is no http:// or https:// address"
        self.refused(2, said, "pinpoint", "c1:5000", "--webhook", "pager.example.net/x")
        self.refused(2, "names no host", "pinpoint", "c1:5000", "--webhook", "http://:5000")
        for url, said in (
            ("ftp://c1", "is no http:// or https:// address"),
            ("http://", "names no host"),
            ("c1:99999", "has a port that is not 1-65535"),
            ("c 1", "is no collector, expected HOST, HOST:PORT or a URL"),
            ("http://m\xfcnchen.example", "has letters beyond ASCII in it"),
            ("http://[fe80::1%lo]:5000", "is link-local"),
        ):
            self.refused(1, f"'{url}' {said}", "pinpoint", "--once", url)
        said = "Error: a URL has a user or a password in it, which is not sent"
        self.refused(1, said, "pinpoint", "--once", "me:pw@c1:5000")
        self.refused(2, "a URL has blanks", "pinpoint", "c1:5000", "--webhook", "http://h?key=a b")
        self.refused(2, "--json goes with --once", "pinpoint", "c1:5000", "--json")

    def test_pinpoint_webhook_file(self) -> None:
        """A file of webhooks is for those who may know them; no line of it is ever shown."""
        path = Path(self.mktemp())
        words = ("pinpoint", "c1:5000", "--webhook-file", str(path))
        path.write_text("https://hooks.example.net/token\n")
        path.chmod(0o644)
        self.refused(1, f"{path} is open to everyone on this host; run: chmod o= {path}", *words)
        path.chmod(0o600)
        for text, said in (
            ("# none\n\n", "has no URL in it, expected one a line"),
            ("https://h/a\nhooks.example.net/s3cret", "line 2 is no http:// or https:// address"),
            ("ftp://h/s3cret", "line 1 is no http:// or https:// address"),
            ("https:///", "line 1 names no host"),
            ("https://h:99999/s3cret", "line 1 has a port that is not 1-65535"),
            ("https://u:s3cret@h/", "line 1 has a user or a password in it"),
            ("https://h/s3cret https://h/s3cret", "line 1 has blanks or control characters"),
            ("https://h/s3cret\x1b", "line 1 has blanks or control characters"),
            ("https://h/s3cret\xfc", "is not ASCII text, expected a URL a line"),
        ):
            path.write_text(text, "utf-8")
            self.refused(1, said, *words)
            self.assertNotIn("s3cret", CliRunner().invoke(main, words).output)
        path.write_text("# two\nhttps://h/a#b # with a comment\n\n http://h/c\nhttps://h/a#b\n")
        self.assertEqual(read_urls(str(path)), ("https://h/a#b", "http://h/c"))
        path.write_text("# one\nhttps://h/s3cret")  # and the rest of it, perhaps
        done = CliRunner().invoke(main, [*words, "--once", "ftp://c1"])
        self.assertIn(f"{path}:2: ends amid a line: is it still being written?", done.output)
        self.assertNotIn("s3cret", done.output)
        self.refused(2, "blanks are written as %20", *words[:2], "--webhook", "http://h/a b")

    def test_pinpoint_that_may_not_write(self) -> None:
        """What cannot be replaced (state) or appended to (record) by this user is told at the start."""
        if os.geteuid():
            raise SkipTest("needs root, to be somebody else")
        with tempfile.TemporaryDirectory() as text:
            there = Path(text)
            there.chmod(0o755)
            closed, mine, theirs = (there / name for name in ("closed", "mine", "theirs"))
            for directory in (closed, mine, theirs):
                directory.mkdir()
            closed.chmod(0o700)
            os.chown(theirs, NOBODY, NOBODY)
            (mine / "file").write_text("")
            os.chown(mine / "file", NOBODY, NOBODY)
            (theirs / "root's").write_text("")
            os.seteuid(NOBODY)
            try:
                for path, option, said in (
                    (closed / "file", "--state", f"make files in the directory {closed}"),
                    (closed / "file", "--record", f"make files in the directory {closed}"),
                    (mine / "file", "--state", f"make files in the directory {mine}"),
                    (mine / "new", "--record", f"make files in the directory {mine}"),
                    (theirs / "root's", "--record", "this user may not write it; give it"),
                ):
                    self.refused(1, said, "pinpoint", "c1:5000", option, str(path))
                for option in ("--state", "--record"):  # whose next argument is refused as before
                    path = str(theirs / "file")
                    words = ("pinpoint", "ftp://c1", option, path)
                    self.refused(1, "'ftp://c1' is no http:// or https://", *words)
                words = ("pinpoint", "ftp://c1", "--record", str(mine / "file"))
                self.refused(1, "'ftp://c1' is no http:// or https://", *words)
            finally:
                os.seteuid(0)
            self.assertEqual(sorted(os.listdir(theirs)), ["root's"])

    def test_pinpoint_into_what_is_no_file(self) -> None:
        """A directory, or a path through a file, is refused as a file to write."""
        there = Path(self.mktemp())
        (there / "state.new").mkdir(parents=True)
        (there / "plain").write_text("")
        for option in ("--state", "--record"):
            path = there / "plain" / "x"
            said = f"{option} {path}: cannot be written (Not a directory); choose another"
            self.refused(1, said, "pinpoint", "c1:5000", option, str(path))
            self.refused(2, "is a directory", "pinpoint", "c1:5000", option, str(there))
        said = "cannot be written (Is a directory); choose another"
        self.refused(1, said, "pinpoint", "c1:5000", "--state", str(there / "state"))

    def test_trace(self) -> None:
        """Ports end at 65535, and a target is written as for ``llama send``."""
        self.refused(2, "999999 is not in the range", "trace", "127.0.0.1", "--port", "999999")
        self.refused(2, "-5 is not in the range", "trace", "127.0.0.1", "--probes", "-5")
        self.refused(2, "'x' is no port", "trace", "127.0.0.1:x")
        said = "127.0.0.1 does not resolve to an IPv6 address"
        self.refused(2, said, "trace", "-6", "127.0.0.1")
        words = ("--no-dns", "--probes", "0", "--flows", "1")
        done = CliRunner().invoke(main, ("trace", "127.0.0.1:9", *words))
        self.assertIn("1 flow reached 127.0.0.1", done.output)

    def test_reflector_port(self) -> None:
        """What is no port is named as it was written."""
        for text in ("abc", "99999", "-1", "80.5"):
            refused = self.assertRaises(SystemExit, Options().parseOptions, [f"--port={text}"])
            self.assertEqual(str(refused), f"--port: {text!r} is no port, expected 0-65535")
        options = Options()
        options.parseOptions(["--port", "862"])
        self.assertEqual(options.loaded.port, 862)

    def test_demo(self) -> None:
        """A directory that cannot be made is named."""
        path = Path(self.mktemp())
        path.write_text("")
        self.refused(
            1, f"--directory {path.resolve() / 'x'}: ", "demo", "--directory", str(path / "x")
        )

    def test_lab(self) -> None:
        """So is a record of a scenario that cannot be written, and no lab is built for it."""
        path = Path(self.mktemp())
        path.write_text("end: 1\n")
        words = ("lab", "run", "--name", "nobodys", str(path))
        record = f"{path}.d/record"
        self.refused(1, f"Error: {record}: No such file or directory", *words, "--record", record)
        self.refused(2, "inf is no time in seconds", *words, "--warm-up", "inf")
        path.write_bytes(b"\xff")
        self.refused(1, f"Error: {path}: no UTF-8 text", *words)

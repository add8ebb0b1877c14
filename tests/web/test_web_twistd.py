"""``twistd llama-web`` as people start it: what it says, and what it says when it cannot."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from services import until
from twisted.trial.unittest import SynchronousTestCase
from web_data import standard_fleet
from web_site import Site, fill

TWISTD = str(Path(sys.executable).with_name("twistd"))


class TwistdTest(SynchronousTestCase):
    """The command."""

    def fails(self, *arguments: str) -> str:
        """Return the last line of what it says before it ends with a failure."""
        done = subprocess.run(
            [TWISTD, "-n", "--pidfile=", "llama-web", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
        )
        said = (done.stdout + done.stderr).strip()
        self.assertNotEqual(done.returncode, 0, said)
        self.assertNotIn("Traceback", said)
        return said.splitlines()[-1]

    def write(self, text: str) -> str:
        """Return the path of a configuration file."""
        path = Path(self.mktemp()).with_suffix(".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    def test_mistakes(self) -> None:
        """Each mistake is one line that says what, where and what to do; never a traceback."""
        self.assertIn("--config FILE is required", self.fails())
        path = self.write("store: {type: none}\n")
        self.assertIn(f"{path}:1: unknown type of a store 'none'", self.fails("--config", path))
        path = self.write(
            "store: {type: prometheus, url: 'http://127.0.0.1:1', ca_file: /etc/hostname}\n"
        )
        self.assertIn("holds no PEM certificate", self.fails("--config", path))

    def test_address_in_use(self) -> None:
        """So is an address that is taken."""
        site = Site()
        self.addCleanup(site.stop)
        site.start()
        address = site.url.removeprefix("http://")
        path = self.write(f"store: {{type: sqlite, path: x}}\nlisten: {address}\n")
        self.assertIn("Address already in use", self.fails("--config", path))

    def test_serves(self) -> None:
        """It serves page and API, before the store is there and after, and ends quickly."""
        site = Site()
        self.addCleanup(site.stop)
        site.start()
        page = urllib.request.urlopen(site.url + "/", timeout=20).read()
        self.assertIn(b"<title>LLAMA matrix</title>", page)
        with self.assertRaises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(site.url + "/api/v1/matrix", timeout=20)
        self.assertEqual(caught.exception.code, 502)
        said = json.loads(caught.exception.read())["error"]
        self.assertIn("is this where the scraper's sqlite writer writes?", said)
        now_s = time.time()
        fill(site.store, standard_fleet(now_s).points(now_s - 300, now_s))
        answer = json.load(urllib.request.urlopen(site.url + "/api/v1/matrix", timeout=20))
        self.assertEqual(answer["summary"]["bad"], 2)
        site.kill()
        self.assertNotIn("Traceback", "".join(site.log))

    def test_hung_up(self) -> None:
        """SIGHUP, which the other services read their files at, does not end it."""
        site = Site()
        self.addCleanup(site.stop)
        site.start()
        site.signal(signal.SIGHUP)
        until(lambda: "web.yaml is read when llama-web starts" in "".join(site.log), "what to do")
        self.assertEqual(urllib.request.urlopen(site.url + "/status", timeout=20).read(), b"ok")

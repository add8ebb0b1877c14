"""The units under a running systemd, put there by the words of docs/deployment.rst."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from booted import Machine
from services import until
from twisted.trial.unittest import SkipTest, SynchronousTestCase

pytestmark = pytest.mark.quiet

PAGE = Path(__file__).parent.parent.parent / "docs" / "deployment.rst"
ALL = "llama-reflector llama-collector llama-scraper llama-web llama-pinpoint"


class BootedTests(SynchronousTestCase):
    """One machine that plays all three of the page's: it is iad-a, and has the others' addresses."""

    def setUp(self) -> None:
        """Boot it and install LLAMA."""
        self.page = PAGE.read_text(encoding="utf-8")
        self.machine = Machine()
        self.addCleanup(self.machine.stop)
        self.machine.start()
        self.do("".join(re.findall(r"(?m)^    ((?:useradd|mkdir|ln) .*\n)", self.page)))

    def do(self, commands: str) -> str:
        """Have commands done that succeed; return what they say."""
        status, said = self.machine.run(f"set -e\n{commands}")
        self.assertEqual(status, 0, f"{commands}: {said}\n{self.log()}")
        return said

    def log(self, *words: str) -> str:
        """Return what the journal has of the units."""
        return self.machine.run(f"journalctl -u 'llama-*' -o cat --no-pager {' '.join(words)}")[1]

    def file(self, name: str) -> str:
        """Return the file of that name in /etc/llama as the page has it."""
        found = re.search(rf"``/etc/llama/{name}``[\s\S]*?::\n\n((?:    .*\n|\n)+)", self.page)
        assert found is not None, name
        return re.sub("(?m)^    ", "", found[1])

    def commands(self, about: str) -> str:
        """Return the page's block of commands that has ``about`` in it."""
        units = self.page.partition("\nUnits\n")[2]
        blocks = re.findall(r"::\n\n((?:    .*\n)+)", units)
        [found] = [block for block in blocks if about in block and "cp " in block]
        return str(found)

    def write(self, name: str, text: str) -> None:
        """Write a file into /etc/llama."""
        self.do(f"cat >/etc/llama/{name} <<'END'\n{text}\nEND\n")

    def configure(self, **test: Any) -> None:
        """Have the collector probe the page's hosts, as it says or otherwise, in short intervals."""
        hosts = yaml.load(self.file("collector.yaml"), yaml.BaseLoader)
        at = test.pop("at", {})
        targets = [{"ip": host, "tags": tags, **at} for host, tags in hosts.items()]
        tests = [{"targets": "hosts", **test}]
        whole = {"summarization": {"interval": 1}, "tests": tests, "targets": {"hosts": targets}}
        self.write("collector.yaml", json.dumps(whole))

    def get(self, url: str) -> Any:
        """Return what a service answers, as JSON."""
        ask = f"import sys, urllib.request as u; print(u.urlopen({url!r}, timeout=20).read().decode())"
        status, said = self.machine.run(f'/opt/llama/bin/python -c "{ask}"')
        if status:
            raise RuntimeError(said[-500:])
        return json.loads(said)

    def pairs(self, wanted: str, probe: str = "stamp") -> Any:
        """Return the newest pairs, once all three are of that kind and have ``wanted``."""

        def look() -> Any:
            pairs = self.get("http://192.0.2.1:5000/latency")["pairs"]
            done = [pair for pair in pairs if pair[wanted] and pair["probe"] == probe]
            return len(done) == 3 and done

        return until(look, f"{wanted} of all pairs by {probe}")

    def test_everything(self) -> None:
        """All five work, from the packets to the page, and end well."""
        self.configure(dscp="EF")
        self.write("scraper.yaml", self.file("scraper.yaml").replace("interval: 30", "interval: 1"))
        self.write("web.yaml", self.file("web.yaml") + "pinpoint: http://127.0.0.1:5004\n")
        for about in (
            "enable --now llama-reflector",
            "enable --now llama-scraper",
            "llama-pinpoint",
        ):
            self.do(self.commands(about))
        for pair in self.pairs("received"):
            self.assertEqual((pair["dscp_at_reflector"], pair["ttl_at_collector"]), (46, 64))
            self.assertGreater(pair["rtt_p50_ms"], 0)
            self.assertNotIn("user_timestamps", pair["suspect"])
        until(lambda: self.get("http://192.0.2.1:5000/paths")["paths"], "paths")
        known = 3  # the state of a cell with a value

        def row() -> Any:
            matrix = self.get("http://127.0.0.1:5001/api/v1/matrix")
            return matrix["cells"]["state"] == [known] * 3 and matrix["rows"]

        [source] = until(row, "a row of the matrix")
        self.assertEqual(source["path"], ["iad", "01"])
        self.assertTrue(self.get("http://127.0.0.1:5001/api/v1/incidents")["configured"])
        seen = self.get("http://127.0.0.1:5004/suspects")["collectors"]
        self.assertEqual(
            [each["url"] for each in seen],
            [f"http://{h}:5000" for h in ("iad-a", "iad-b", "lax-c")],
        )
        self.assertEqual(self.do("stat -c '%U %a' /var/lib/llama"), "llama 750")
        self.do(f"systemctl stop {ALL}")
        results = self.do(f"systemctl show --property=Result --value {ALL}")
        self.assertEqual(results.split(), ["success"] * 5)
        self.assertEqual(re.findall(r"(?m)^.*\d{4}-\d\d-\d\dT\d\d:.*$", self.log()), [])

    def test_mistakes_and_crashes(self) -> None:
        """What cannot start says so to whoever starts it; a bad reload is an error; a crash is mended."""
        self.write("collector.yaml", "tests: []\nnonsense: 1")
        status, _ = self.machine.run(self.commands("enable --now llama-reflector"))
        self.assertEqual(status, 1)
        self.assertIn("unknown key 'nonsense'", self.log())
        self.configure()
        self.do("systemctl restart llama-collector; systemctl reload llama-collector")
        until(lambda: "takes effect" in self.log(), "the reload")
        self.write("collector.yaml", "nonsense: 1")
        self.do("systemctl reload llama-collector")
        until(lambda: "not reloaded" in self.log("-p err"), "the refusal")
        self.assertNotIn("takes effect", self.log("-p err"))
        self.configure()
        self.do("systemctl kill --signal=KILL llama-collector")
        until(
            lambda: self.do("systemctl show --property=NRestarts --value llama-collector") == "1",
            "a restart",
        )
        self.pairs("received")

    def test_dropins(self) -> None:
        """What takes more than the units leave has it by their drop-ins, and no more than that."""
        if not shutil.which("hping3"):
            raise SkipTest("needs hping3: make system")
        self.configure(probe="icmp")
        self.do(self.commands("enable --now llama-reflector"))
        until(lambda: "does not probe" in self.log("-p err"), "the refusal")
        self.do(self.commands("llama-collector.service.d"))
        self.pairs("received", "icmp")
        self.configure(probe="hping3")
        self.do("systemctl reload llama-collector")
        self.pairs("received", "hping3")
        self.configure(dscp="EF", at={"port": 862})
        self.do(self.commands("llama-reflector.service.d"))
        self.do("systemctl reload llama-collector")
        for pair in self.pairs("dscp_at_reflector"):
            self.assertEqual(pair["dst_port"], 862)
        held = self.do(
            "grep CapPrm /proc/$(systemctl show -p MainPID --value llama-reflector)/status"
        )
        net_bind_service = 1 << 10
        self.assertEqual(int(held.split()[1], 16), net_bind_service)

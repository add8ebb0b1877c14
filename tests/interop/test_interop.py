"""``make interop``, with peers of the tests' own in both roles."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

HERE = Path(__file__).parent
ECHO = """\
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("127.0.0.1", int(sys.argv[1])))
while True:
    sock.sendto(*sock.recvfrom(65536))
"""


def interop(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    return subprocess.run(
        [sys.executable, HERE, *arguments], capture_output=True, text=True, timeout=110
    )


class InteropTests(SynchronousTestCase):
    def test_both_roles(self) -> None:
        """A reflector that echoes and a sender that signs pass; one that never answers does not."""
        folder = Path(self.mktemp())
        folder.mkdir()
        echo = (folder / "echo.py").absolute()
        echo.write_text(ECHO)
        want = '[{"host": "{host}", "port": {port}, "kind": "stamp-auth", "key": "{key}"}]'
        done = interop(
            f"reflector:llama-go={{python}} {echo} {{port}}",
            "reflector:stamp={python} -c pass",
            f"sender:scapy={{python}} {HERE.parent / 'peers' / 'sender.py'} '{want}'",
        )
        self.assertEqual(1, done.returncode, done.stderr)
        _, reflector, ended, sender = done.stdout.splitlines()
        self.assertIn("ok       40 sent, 40 received, 0 lost", reflector)
        self.assertIn("FAILED   it ended", ended)
        self.assertIn("ok       3 stamp-auth answered", sender)

    def test_what_is_missing(self) -> None:
        """Peers that are not there, or are no peers, are named; nothing is fetched."""
        done = interop("twampy=/nonexistent/twampy.py", "sender:x=/nonexistent/y", "z=1")
        self.assertEqual(2, done.returncode)
        self.assertEqual(2, done.stdout.count("MISSING"))
        self.assertIn("WRONG    known are twampy", done.stdout)
        self.assertEqual(2, interop().returncode)

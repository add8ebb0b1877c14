"""A reflector on a link-local address, which is one of an interface's, in a network of its own.

A real twistd process; needs root and util-linux.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from services import Service, until
from twisted.trial.unittest import SkipTest, SynchronousTestCase

_NETWORK = """
ip link set lo up
ip link add v0 type veth peer name v1
ip link set v0 up
ip link set v1 up
ip addr add fe80::1/64 dev v0 nodad
exec "$@"
"""
#: Asks a reflector at an address, with its interface, and prints who answers.
_ASK = """
import socket, sys
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
    sock.settimeout(3)
    sock.sendto(b"\\0\\0\\0\\1" + bytes(40), socket.getaddrinfo(sys.argv[1], 8111)[0][4])
    print(sock.recvfrom(100)[1][0])
"""


class _Alone(Service):
    """A reflector on a veth pair's end."""

    def command(self) -> list[str]:
        twistd = str(Path(sys.executable).parent / "twistd")
        named = [twistd, "-n", "--pidfile=", self.name, *self.arguments]
        return ["unshare", "--net", "sh", "-e", "-c", _NETWORK, "sh", *named]


class LinkLocalTests(SynchronousTestCase):
    def reflector(self, address: str) -> _Alone:
        """Start a reflector that lasts as long as the test."""
        if os.geteuid():
            raise SkipTest("needs root, to make a network")
        for tool in ("unshare", "nsenter", "ip"):
            if shutil.which(tool) is None:
                raise SkipTest(f"needs {tool}: apt install util-linux iproute2")
        service = _Alone("llama-reflector", "--config", "reflector.yaml")
        self.addCleanup(shutil.rmtree, service.directory)
        self.addCleanup(service.stop)
        file = service.directory / "reflector.yaml"
        file.write_text(f'addresses: "{address}"\nport: 8111\n')
        service.start()
        return service

    def test_answers_on_its_interface(self) -> None:
        """An address with an interface behind a % is bound there, and answers from there."""
        service = self.reflector("fe80::1%v0")
        inside = ["nsenter", "--net", "--target", str(service.pid), sys.executable, "-c", _ASK]

        def asked() -> str:
            return subprocess.run(
                [*inside, "fe80::1%v0"], capture_output=True, text=True, timeout=30
            ).stdout.strip()

        self.assertEqual(until(asked, "an answer"), "fe80::1")

    def test_interface_that_is_not_there(self) -> None:
        """One that this machine does not have ends the program with one line."""
        service = self.reflector("fe80::1%v9")
        said = until(lambda: "cannot listen" in service.text() and service.text(), "the reason")
        self.assertIn("cannot listen on UDP fe80::1%v9 port 8111", said)
        self.assertNotIn("Traceback", said)

"""What a reflector that is started with root's powers has left of them, in a network of its own.

Real twistd processes; needs root, to have powers to give up, and util-linux.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from services import Service, until
from twisted.trial.unittest import SkipTest, SynchronousTestCase

NOBODY = 65534
BIND = 1 << 10  # CAP_NET_BIND_SERVICE
#: Asks a reflector at the address and port given, and prints how many octets come back.
ASK = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(3)
    sock.connect((sys.argv[1], int(sys.argv[2])))
    sock.send(b"\\0\\0\\0\\1" + bytes(40))
    print(len(sock.recv(100)))
"""


class Alone(Service):
    """A reflector that has a network of its own, where nothing but loopback is."""

    def __init__(
        self, configuration: str, *, drop: bool, before: tuple[str, ...] = (), euid: bool = False
    ) -> None:
        super().__init__("llama-reflector", "--config", str(Path("reflector.yaml")))
        self.directory.chmod(0o755)  # the configuration is read again as nobody
        self._drop, self._before, self._euid = drop, before, euid
        self.configure(configuration)

    def configure(self, configuration: str) -> None:
        """Write the configuration file."""
        (self.directory / "reflector.yaml").write_text(configuration)

    def command(self) -> list[str]:
        """Return the command that starts it."""
        alone = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
        options = ["--uid", str(NOBODY), "--gid", str(NOBODY)] if self._drop else []
        options += ["--euid"] if self._euid else []
        twistd = str(Path(sys.executable).parent / "twistd")
        named = [self.name, *self.arguments]
        return [*alone, *self._before, twistd, "-n", "--pidfile=", *options, *named]

    def answers(self, address: str, port: int) -> bool:
        """Tell whether it answers there."""
        asked = subprocess.run(
            ["nsenter", "--net", "--target", str(self.pid), sys.executable, "-c", ASK, address,
             str(port)],
            capture_output=True, text=True,
        )  # fmt: skip
        return asked.stdout == "44\n"

    def status(self, task: str = "") -> dict[str, str]:
        """Return what the kernel says of the process, or of one of its threads."""
        path = Path(f"/proc/{self.pid}/task/{task or self.pid}/status")
        return dict(line.split(":\t", 1) for line in path.read_text().splitlines() if ":\t" in line)

    def powers(self) -> set[int]:
        """Return the permitted, effective, inheritable and ambient capabilities of all threads."""
        tasks = os.listdir(f"/proc/{self.pid}/task")
        names = ("CapPrm", "CapEff", "CapInh", "CapAmb")
        return {int(self.status(task)[name], 16) for task in tasks for name in names}


class PrivilegeTests(SynchronousTestCase):
    def setUp(self) -> None:
        """Leave out what needs root and its tools where they are missing."""
        if os.geteuid():
            raise SkipTest("needs root, to have something to give up")
        for tool in ("unshare", "nsenter", "setpriv", "ip"):
            if shutil.which(tool) is None:
                raise SkipTest(f"needs {tool}: apt install util-linux iproute2")

    def started(self, reflector: Alone, port: int) -> Alone:
        """Start a reflector that lasts as long as the test and wait until it answers."""
        reflector.start()
        self.addCleanup(shutil.rmtree, reflector.directory)
        self.addCleanup(reflector.stop)
        until(lambda: reflector.answers("127.0.0.1", port), "an answer")
        ids = {name: set(reflector.status()[name].split()) for name in ("Uid", "Gid", "Groups")}
        self.assertEqual({str(NOBODY)}, ids["Uid"] | ids["Gid"] | ids["Groups"], ids)
        return reflector

    def test_the_standards_port_leaves_one_capability(self) -> None:
        """From root, with --uid and --gid: 862 answers, and may be bound anew, but nothing else."""
        reflector = self.started(Alone("port: 862\naddresses: 127.0.0.1\n", drop=True), 862)
        self.assertEqual(BIND, int(reflector.status()["CapEff"], 16))
        self.assertEqual({0, BIND}, reflector.powers())
        reflector.configure("port: 862\naddresses: [127.0.0.2, 127.0.0.1]\n")
        reflector.send_signal(signal.SIGHUP)
        until(lambda: reflector.answers("127.0.0.2", 862), "the new address")
        self.assertTrue(reflector.answers("127.0.0.1", 862))
        self.assertEqual(-signal.SIGTERM, reflector.stop())

    def test_a_port_that_was_left_leaves_none(self) -> None:
        """A reload that moves it away from 862 takes the last capability; coming back is refused."""
        reflector = self.started(Alone("port: 862\naddresses: 127.0.0.1\n", drop=True), 862)
        self.assertNotIn("root again", reflector.text())
        reflector.configure("port: 8100\naddresses: 127.0.0.1\n")
        reflector.send_signal(signal.SIGHUP)
        until(lambda: "reloaded " in reflector.text(), "the other port")
        until(lambda: reflector.powers() == {0}, "no capability")
        reflector.configure("port: 862\naddresses: 127.0.0.1\n")
        reflector.send_signal(signal.SIGHUP)
        until(lambda: "not reloaded: llama-reflector: cannot listen" in reflector.text(), "refusal")
        self.assertTrue(reflector.answers("127.0.0.1", 8100))

    def test_an_effective_user_is_not_enough(self) -> None:
        """With --euid the way back to root stays open, and it says so."""
        reflector = Alone("port: 8100\naddresses: 127.0.0.1\n", drop=True, euid=True)
        reflector.start()
        self.addCleanup(shutil.rmtree, reflector.directory)
        self.addCleanup(reflector.stop)
        until(lambda: "can become root again" in reflector.text(), "the warning")
        self.assertEqual({0}, reflector.powers())

    def test_other_ports_leave_none(self) -> None:
        """From root, with --uid and --gid, on 8100: an ordinary process."""
        reflector = self.started(Alone("port: 8100\n", drop=True), 8100)
        self.assertEqual({0}, reflector.powers())
        reflector.configure("port: 862\n")
        reflector.send_signal(signal.SIGHUP)
        until(lambda: "not reloaded: llama-reflector: cannot listen" in reflector.text(), "refusal")
        self.assertTrue(reflector.answers("127.0.0.1", 8100))

    def test_ambient_capabilities(self) -> None:
        """Started by systemd with AmbientCapabilities= it keeps what its port takes, for itself."""
        before = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", f"--groups={NOBODY}",
                  "--inh-caps=+net_bind_service,+net_raw",
                  "--ambient-caps=+net_bind_service,+net_raw")  # fmt: skip
        for port, kept in ((862, {0, BIND}), (8100, {0})):
            reflector = self.started(Alone(f"port: {port}\n", drop=False, before=before), port)
            self.assertEqual(kept, reflector.powers())
            self.assertEqual(0, int(reflector.status()["CapAmb"], 16))

"""A collector that does not get the sockets it wants: it probes what it can, and does not give up."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys

from attrs import evolve
from engine_case import EngineCase
from twisted.trial.unittest import SynchronousTestCase

from llama.collector.sockets import SPARE_FILES
from llama.net import route


def open_files() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


class FilesTests(EngineCase):
    """More sockets wanted than this process may have open."""

    def limit(self, more: int) -> None:
        """Allow so many descriptors more than there are now."""
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        highest = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + more, before[1]))

    def test_what_is_refused_keeps_nothing(self) -> None:
        """Sockets opened for a test that cannot be probed are closed at once; others go on."""
        self.engine.use([self.group()])
        big = evolve(self.group(ports=300), test="big", sources=tuple(
            evolve(source, owner=f"big{n}") for n, source in enumerate(self.group(ports=300).sources)
        ))  # fmt: skip
        self.limit(SPARE_FILES + 20)
        before = open_files()
        for _ in range(2):
            [(group, reason)] = self.engine.use([self.group(), big])
            self.assertEqual((group.test, reason.strerror), ("big", "Too many open files"))
            self.assertEqual(open_files(), before)
        self.assertEqual(len(self.prober.sockets), 2)
        row = self.newest(2).pair_stats[0]
        self.assertEqual((row["lost"], row["sent"] > 0), (0, True))

    def test_others_find_some_left(self) -> None:
        """Probing that takes all it can get leaves descriptors to HTTP and whatever else."""
        self.limit(SPARE_FILES + 20)
        group = self.group(ports=300)
        [(_, _)] = self.engine.use([group])
        for source in group.sources[:10]:
            self.prober.open(source)
        others = [socket.socket() for _ in range(SPARE_FILES // 2)]
        for sock in others:
            sock.close()


class LimitTests(SynchronousTestCase):
    """What is done about the limit."""

    def test_no_socket_is_no_route(self) -> None:
        """Where no socket can be had to ask, whence the kernel would send is not known."""

        def refuse(*_: object) -> None:
            raise OSError(24, "Too many open files")

        self.patch(route.socket, "socket", refuse)
        self.assertIsNone(route.local_address("192.0.2.1"))

    def test_soft_limit_is_raised(self) -> None:
        """The limit that needs no privilege is raised to the one that does."""
        script = "import resource, sys; from llama.process import raise_open_files\n"
        script += "resource.setrlimit(resource.RLIMIT_NOFILE, (80, 500)); raise_open_files()\n"
        script += "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
        said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        self.assertEqual(said.stdout.strip(), "(500, 500)", said.stderr)

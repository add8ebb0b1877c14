"""A veth pair between two network namespaces, watched by tcpdump at both ends.

The names carry the id of the process that made them, so whatever a killed run left behind is
recognised by the next one and removed. Capture files are read here, too.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from attrs import frozen

from benchmarks.programs import BenchmarkError

PREFIX = "llama-accuracy-"
NAMESPACES = Path("/run/netns")  # where iproute2 keeps them
NEAR, FAR = "10.99.0.1", "10.99.0.2"
ETHERNET, NANOSECONDS = 1, 0xA1B23C4D  # of the pcap file format
PATIENCE_S = 10.0


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise BenchmarkError(f"ip {' '.join(words)}: {' '.join(done.stderr.split())}")
    return done.stdout


def _remove(namespace: str) -> None:
    """Remove a namespace and end what still runs inside."""
    for pid in _ip("netns", "pids", namespace).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _ip("netns", "delete", namespace)


def remove_leftovers() -> None:
    """Remove the namespaces of runs that were killed."""
    for path in NAMESPACES.glob(PREFIX + "*"):
        owner = re.fullmatch(PREFIX + r"(\d+)-\w+", path.name)
        if owner and not Path(f"/proc/{owner[1]}").exists():
            _remove(path.name)


@frozen
class Cable:
    """The pair: a prober is to run in ``near`` and probe `FAR`, a reflector in ``far``."""

    near: str
    far: str

    def inside(self, namespace: str, *command: str) -> list[str]:
        """Return ``command`` as it is to be run inside one of the two namespaces."""
        return ["ip", "netns", "exec", namespace, *command]


@contextlib.contextmanager
def cable() -> Iterator[Cable]:
    """Make the two namespaces and the cable between them, and remove them afterwards."""
    if os.geteuid():
        raise BenchmarkError("network namespaces need root: run it as root")
    for tool in ("ip", "tcpdump"):
        if shutil.which(tool) is None:
            raise BenchmarkError(f"{tool} is missing (Debian: apt install iproute2 tcpdump)")
    remove_leftovers()
    made = Cable(f"{PREFIX}{os.getpid()}-near", f"{PREFIX}{os.getpid()}-far")
    try:
        for namespace in (made.near, made.far):
            _ip("netns", "add", namespace)
        _ip(
            *("link", "add", "cable", "netns", made.near, "type", "veth"),
            *("peer", "name", "cable", "netns", made.far),
        )
        for namespace, address in ((made.near, NEAR), (made.far, FAR)):
            _ip("-n", namespace, "address", "add", f"{address}/30", "dev", "cable")
            _ip("-n", namespace, "link", "set", "lo", "up")
            _ip("-n", namespace, "link", "set", "cable", "up")
        yield made
    finally:
        for namespace in (made.near, made.far):
            if (NAMESPACES / namespace).exists():
                _remove(namespace)


@contextlib.contextmanager
def captured(made: Cable, directory: Path) -> Iterator[tuple[Path, Path]]:
    """Capture what passes at both ends, to the nanosecond, into two files given beforehand.

    They are complete when the context is left.
    """
    files = directory / "near.pcap", directory / "far.pcap"
    watchers = []
    try:
        for namespace, file in zip((made.near, made.far), files, strict=True):
            command = made.inside(namespace, "tcpdump", "-i", "cable", "-w", str(file))
            command += ["-j", "host", "--time-stamp-precision=nano", "-s", "256", "-B", "16384"]
            command += ["-Z", "root", "ip"]  # the user tcpdump could not write there
            watchers.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        for watcher in watchers:
            assert watcher.stderr is not None
            said = watcher.stderr.readline()
            if "listening" not in said:
                raise BenchmarkError(f"tcpdump: {said.strip()}")
        yield files
        time.sleep(1.5)  # tcpdump is handed what was captured once a second
    finally:
        for watcher in watchers:
            watcher.send_signal(signal.SIGINT)
        said = [watcher.communicate(timeout=PATIENCE_S)[1] for watcher in watchers]
    for text in said:
        if not re.search(r"\b0 packets dropped by kernel", text):
            raise BenchmarkError(f"tcpdump missed packets: {' '.join(text.split())}")


Key = tuple[int, ...]
#: Tells from an IPv4 packet's protocol and payload which probe it is, or None.
Identify = Callable[[int, bytes], Key | None]


def captures(file: Path, identify: Identify) -> dict[Key, list[int]]:
    """Return when each packet that ``identify`` knows was captured, in ns since 1970."""
    data = file.read_bytes()
    magic, _, _, _, _, _, kind = struct.unpack_from("<IHHiIII", data)
    if magic != NANOSECONDS or kind != ETHERNET:
        raise BenchmarkError(f"{file.name} is no Ethernet capture with nanoseconds")
    found: dict[Key, list[int]] = {}
    offset = 24
    while offset + 16 <= len(data):
        seconds, ns, kept, _ = struct.unpack_from("<IIII", data, offset)
        packet = data[offset + 16 + 14 : offset + 16 + kept]
        offset += 16 + kept
        if len(packet) < 28:
            continue
        key = identify(packet[9], packet[4 * (packet[0] & 15) :])
        if key is not None:
            found.setdefault(key, []).append(seconds * 1_000_000_000 + ns)
    return found


def passages(file: Path, probe: Identify, reply: Identify) -> dict[Key, tuple[int, int]]:
    """Return when each probe and its reply passed, in ns since 1970, by what identifies them.

    A probe or reply that passed twice, or only one of the two, is left out.
    """
    there, back = captures(file, probe), captures(file, reply)
    return {
        key: (times[0], back[key][0])
        for key, times in there.items()
        if len(times) == 1 and len(back.get(key, ())) == 1
    }


def true_rtts(near: dict[Key, tuple[int, int]], far: dict[Key, tuple[int, int]]) -> dict[Key, int]:
    """Return the network's share of each round trip, in ns: all of it less the far end's."""
    return {
        key: (back - there) - (far[key][1] - far[key][0])
        for key, (there, back) in near.items()
        if key in far
    }

"""How far from the truth a round-trip time is: ours, ours with less, ping's and irtt's.

Everything runs over one veth pair, idle and then with every core kept busy by competing processes.
The truth of each probe is taken from captures at both ends: what passed between its leaving and its
reply's coming back, less what passed at the reflector. On loopback a capture would only repeat the
receiver's own stamp, and prove nothing. Needs root.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen

from benchmarks import machine
from benchmarks.figures import Claim, Report
from benchmarks.programs import READY_S, ROOT, BenchmarkError, pinned, running, twistd
from benchmarks.transmit_stamps import DISCARD
from benchmarks.veth import FAR, Cable, Key, cable, captured, captures, passages, true_rtts

PORT = 8100
IRTT_PORT = 2112
UDP, ICMP = 17, 1
COLUMNS = (
    "prober",
    "cores",
    "probes",
    "true RTT µs",
    "error median µs",
    "error p99 µs",
    "bias µs",
)
FOLLOWED, STAMPED, USER = "llama, Follow-Up", "llama, no Follow-Up", "llama, user-space T1"
Rtts = dict[Key, float]  # ns, by what identifies the probe


@frozen
class Prober:
    """A program that measures round-trip times, and how to recognise its packets."""

    name: str
    command: Callable[[int, float], list[str]]  #: from a count and an interval in seconds
    read: Callable[[str], Rtts]  #: from its output
    probe: Callable[[int, bytes], Key | None]
    reply: Callable[[int, bytes], Key | None]


def stamp_probe(protocol: int, octets: bytes) -> Key | None:
    """Identify a STAMP probe: source port, SSID, sequence number."""
    source, to = struct.unpack_from(">HH", octets)
    if protocol != UDP or to != PORT or len(octets) < 8 + 44:
        return None
    return source, *struct.unpack_from(">H", octets, 8 + 14), *struct.unpack_from(">I", octets, 8)


def stamp_reply(protocol: int, octets: bytes) -> Key | None:
    """Identify the probe that a STAMP reply is for."""
    source, to = struct.unpack_from(">HH", octets)
    if protocol != UDP or source != PORT or len(octets) < 8 + 44:
        return None
    return to, *struct.unpack_from(">H", octets, 8 + 14), *struct.unpack_from(">I", octets, 8 + 24)


def llama(name: str, *options: str, followed_up: bool | None = None) -> Prober:
    """Return ``llama send``; ``followed_up`` leaves only the samples that are, or are not."""

    def command(count: int, interval_s: float) -> list[str]:
        program = str(Path(sys.executable).with_name("llama"))
        words = [program, "send", f"{FAR}:{PORT}", "--json", "--count", str(count)]
        return [*words, "--interval", f"{interval_s:g}", *options]

    def read(output: str) -> Rtts:
        found = {}
        for line in output.splitlines():
            row = json.loads(line)
            if row.get("rtt_ns") is None or "seq" not in row:
                continue
            if followed_up is None or row["followed_up"] == followed_up:
                found[row["source_port"], row["ssid"], row["seq"]] = float(row["rtt_ns"])
        return found

    return Prober(name, command, read, stamp_probe, stamp_reply)


def _ping_reader(output: str) -> Rtts:
    return {
        (int(sequence),): float(ms) * 1e6
        for sequence, ms in re.findall(r"icmp_seq=(\d+) .*time=([\d.]+) ms", output)
    }


def _icmp(wanted: int) -> Callable[[int, bytes], Key | None]:
    def identify(protocol: int, octets: bytes) -> Key | None:
        kind, sequence = struct.unpack_from(">B5xH", octets)
        return (sequence,) if protocol == ICMP and kind == wanted else None

    return identify


def ping() -> Prober:
    """Return iputils' ping, which prints three digits of each time."""
    return Prober(
        "ping",
        lambda count, interval_s: ["ping", "-c", str(count), "-i", f"{interval_s:g}", FAR],
        _ping_reader,
        _icmp(8),
        _icmp(0),
    )


def _irtt_reader(output: str) -> Rtts:
    return {
        (trip["seqno"],): float(trip["delay"]["rtt"])
        for trip in json.loads(output)["round_trips"]
        if "rtt" in trip.get("delay", {})
    }


def _irtt(at: int) -> Callable[[int, bytes], Key | None]:
    """Recognise irtt's packets by the port at ``at``: magic, flags, token, then the number."""

    def identify(protocol: int, octets: bytes) -> Key | None:
        (port,) = struct.unpack_from(">H", octets, at)
        if protocol != UDP or port != IRTT_PORT or len(octets) < 8 + 16:
            return None
        opening_or_closing = octets[8 + 3] & 5
        return None if opening_or_closing else struct.unpack_from("<I", octets, 8 + 12)

    return identify


def irtt() -> Prober:
    """Return irtt, which subtracts the server's share as we do, from user-space stamps."""

    def command(count: int, interval_s: float) -> list[str]:
        length = ["-i", f"{interval_s * 1e6:.0f}us", "-d", f"{count * interval_s * 1e3:.0f}ms"]
        return ["irtt", "client", "-Q", "-o", "-", *length, f"{FAR}:{IRTT_PORT}"]

    return Prober("irtt", command, _irtt_reader, _irtt(2), _irtt(0))


@contextlib.contextmanager
def competition() -> Iterator[None]:
    """Keep every core busy with a process that does nothing else, one a core."""
    usable = os.sched_getaffinity(0)
    loop = [sys.executable, "-S", "-c", "while True: pass"]
    others = [subprocess.Popen(loop, preexec_fn=pinned(core)) for core in usable]
    try:
        time.sleep(0.5)
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


@contextlib.contextmanager
def reflectors(made: Cable, directory: Path) -> Iterator[None]:
    """Run our reflector and irtt's server at the far end."""
    config = directory / "accuracy-reflector.yaml"
    config.write_text(f"addresses: [{FAR}]\nport: {PORT}\napi: {{bind: '127.0.0.1:5002'}}\n")
    commands = [
        twistd("llama-reflector", "--config", str(config)),
        ["irtt", "server", "-i", "0", "-b", f"{FAR}:{IRTT_PORT}"],
    ]
    ours, irtts = (made.inside(made.far, *command) for command in commands)
    with (
        running(ours, directory / "accuracy-reflector.log") as reflector,
        running(irtts, directory / "accuracy-irtt.log"),
    ):
        until = time.monotonic() + READY_S
        ask = made.inside(made.near, *llama("ready?").command(1, 0.1))
        while subprocess.run(ask, capture_output=True).returncode:
            if time.monotonic() > until or reflector.process.poll() is not None:
                raise BenchmarkError(reflector.obituary())
        yield


def compare(measured: Mapping[Key, float], truth: Mapping[Key, int]) -> dict[str, Any]:
    """Return how far measured round-trip times are from the true ones, in µs."""
    keys = [key for key in measured if key in truth]
    if not keys:
        raise BenchmarkError("no probe was both measured and captured")
    true = np.array([truth[key] for key in keys]) / 1000
    error = np.array([measured[key] for key in keys]) / 1000 - true
    return {
        "probes": len(keys),
        "true RTT µs": float(np.median(true)),
        "error median µs": float(np.median(np.abs(error))),
        "error p99 µs": float(np.percentile(np.abs(error), 99)),
        "bias µs": float(np.median(error)),
    }


def measure(
    made: Cable, prober: Prober, directory: Path, count: int, interval_s: float
) -> dict[str, Any]:
    """Run one prober while both ends are captured and return its row of the table."""
    command = made.inside(made.near, *prober.command(count, interval_s))
    with captured(made, directory) as (near, far):
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BenchmarkError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    truth = true_rtts(*(passages(file, prober.probe, prober.reply) for file in (near, far)))
    measured = prober.read(done.stdout)
    return {"prober": prober.name, **compare(measured, truth), "sent": count, "true": len(truth)}


def _numbered(protocol: int, octets: bytes) -> Key | None:
    """Identify what `benchmarks.transmit_stamps` sends."""
    _, to = struct.unpack_from(">HH", octets)
    if protocol != UDP or to != DISCARD:
        return None
    return struct.unpack_from(">I", octets, 8)


def observer(made: Cable, directory: Path, count: int, interval_s: float) -> tuple[float, float]:
    """Return median and 99th percentile, in µs, of how long before its stamp a packet is captured.

    A packet that leaves is copied for the capture first, and only then given to the driver, which
    takes the transmit stamp. So each end's capture sees it too early by what copying takes, and the
    truth comes out too long by both.
    """
    words = [FAR, str(count), f"{interval_s:g}"]
    command = [sys.executable, "-m", "benchmarks.transmit_stamps", *words]
    with captured(made, directory) as (near, _):
        done = subprocess.run(
            made.inside(made.near, *command), cwd=ROOT, capture_output=True, text=True
        )
    if done.returncode:
        raise BenchmarkError(f"{' '.join(command)}: {done.stderr.strip()}")
    seen = captures(near, _numbered)
    early = [at - seen[number,][0] for number, at in json.loads(done.stdout) if (number,) in seen]
    if not early:
        raise BenchmarkError("no transmit stamp came: this kernel's veth gives none")
    return float(np.median(early)) / 1000, float(np.percentile(early, 99)) / 1000


def run(directory: Path, count: int = 2000, interval_s: float = 0.002) -> Report:
    """Measure every prober, with idle and with busy cores."""
    for tool in ("ping", "irtt"):
        if shutil.which(tool) is None:
            raise BenchmarkError(f"{tool} is missing (Debian: apt install iputils-ping irtt)")
    probers = [
        llama(FOLLOWED, followed_up=True),
        llama(STAMPED, "--size", "44"),
        llama(USER, "--size", "44", "--timestamps", "user"),
        ping(),
        irtt(),
    ]
    rows = []
    observed = []
    with cable() as made, reflectors(made, directory):
        for cores, others in (("idle", contextlib.nullcontext), ("busy", competition)):
            with others():
                early = observer(made, directory, count // 2, interval_s)
                observed.append(
                    f"{cores}: a packet is captured {early[0]:.1f} µs (p99 {early[1]:.1f}) before"
                    " its transmit stamp is taken, at either end: the truth is too long by both."
                )
                for prober in probers:
                    row = measure(made, prober, directory, count, interval_s)
                    rows.append({**row, "cores": cores})
    of = {(row["prober"], row["cores"]): row for row in rows}
    claims = [
        Claim(
            f"error of the RTT with Follow-Up, {cores}, {what}, µs",
            of[FOLLOWED, cores][f"error {what} µs"],
            limit,
        )
        for cores in ("idle", "busy")
        for what, limit in (("median", "<= 5"), ("p99", "<= 20"))
    ]
    claims.append(
        Claim(
            "error of the RTT without Follow-Up, idle, median, µs",
            of[STAMPED, "idle"]["error median µs"],
            "<= 25",
        )
    )
    return Report(
        "Accuracy of the round-trip time",
        COLUMNS,
        tuple(rows),
        tuple(claims),
        (
            f"{count} probes every {interval_s * 1000:g} ms each, over a veth pair captured at both"
            " ends; the error is |measured - true|, the bias the median of measured - true.",
            f"busy: {machine.describe()['cores']} competing processes, one on each core.",
            f"{FOLLOWED}: of its probes, those that a later reply corrected.",
            *observed,
        ),
    )


def main() -> None:
    """Run this benchmark alone, as ``python -m benchmarks accuracy`` does."""
    from benchmarks.__main__ import main as command

    command(["accuracy", *sys.argv[1:]], prog_name="python -m benchmarks.accuracy")


if __name__ == "__main__":
    main()

"""Delay on one interface: a relay between a TAP device and the wire.

The kernels that LLAMA is built on have no ``sch_netem``. Instead nftables forwards what leaves
the interface to a TAP device, this relay holds every frame for its time and puts it on the wire
through a packet socket that bears `MARK`, by which nftables lets it pass the second time. Run
inside the namespace: ``python -m llama.lab.delay INTERFACE TAP DELAY_MS JITTER_MS``.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import socket
import struct
import sys
import time

#: What frames that were held long enough are marked with.
MARK = 0x11A3A
# <linux/if_tun.h>
TUNSETIFF = 0x400454CA
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
FRAME = 65_600
#: More than this many frames held are dropped, like in a router's buffer.
HELD = 100_000


def open_tap(name: str) -> int:
    """Return a non-blocking descriptor of the existing TAP device `name`."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return tap


def relay(interface: str, tap_name: str, delay_s: float, jitter_s: float) -> None:
    """Hold every frame from the TAP for `delay_s` plus up to `jitter_s`, for ever.

    Frames keep their order unless there is jitter, which may reorder, as on parallel paths.
    """
    tap = open_tap(tap_name)
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
    wire.bind((interface, 0))
    ready = select.epoll()
    ready.register(tap, select.EPOLLIN)
    held: list[tuple[float, int, bytes]] = []
    number = 0
    told: set[int | None] = set()
    while True:
        now = time.monotonic()
        # epoll counts in milliseconds; the last one is waited for more finely.
        wait_s = held[0][0] - now if held else None
        if wait_s is None or wait_s > 0.002:
            ready.poll(None if wait_s is None else wait_s - 0.001)
        elif wait_s > 0:
            select.select([tap], [], [], wait_s)
        now = time.monotonic()
        try:
            while True:
                frame = os.read(tap, FRAME)
                if len(held) < HELD:
                    due = now + delay_s + jitter_s * random.random()
                    heapq.heappush(held, (due, number, frame))
                    number += 1
        except BlockingIOError:
            pass
        now = time.monotonic()
        while held and held[0][0] <= now:
            try:
                wire.send(heapq.heappop(held)[2])
            except OSError as e:
                # The cable is down or the far end full: a router drops there, too.
                if e.errno not in told:
                    told.add(e.errno)
                    print(f"{interface}: {e}; dropped", file=sys.stderr, flush=True)


if __name__ == "__main__":
    relay(sys.argv[1], sys.argv[2], float(sys.argv[3]) / 1e3, float(sys.argv[4]) / 1e3)

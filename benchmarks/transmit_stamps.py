"""Sends numbered datagrams and prints when the kernel says that each left: [[number, ns], ...].

Run as a program: ADDRESS COUNT INTERVAL. They go to the discard port, each a 32-bit number in
network order. It tells how long before its transmit stamp a packet is captured.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time

from llama.net import mmsg

DISCARD = 9
FLAGS = mmsg.SOF_TX_SOFTWARE | mmsg.SOF_SOFTWARE | mmsg.SOF_OPT_ID | mmsg.SOF_OPT_TSONLY


def stamps(sock: socket.socket) -> list[tuple[int, int]]:
    """Return the transmit stamps that wait in the error queue: (number, ns since 1970)."""
    found = []
    while True:
        try:
            ancillary = sock.recvmsg(64, 256, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)[1]
        except BlockingIOError:
            return found
        number, at = -1, 0
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, mmsg.SO_TIMESTAMPING):
                seconds, ns = struct.unpack_from("@qq", data)
                at = seconds * 1_000_000_000 + ns
            elif (level, kind) == (mmsg.SOL_IP, mmsg.IP_RECVERR):
                (number,) = struct.unpack_from("@12xI", data)  # sock_extended_err.ee_data
        found.append((number, at))


def main() -> None:
    """Send and print."""
    address, count, interval_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, mmsg.SO_TIMESTAMPING, FLAGS)
        for number in range(count):
            sock.sendto(struct.pack(">I", number), (address, DISCARD))
            time.sleep(interval_s)
            found += stamps(sock)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()

"""Filters of sockets in classic BPF: the kernel hands over only what a small program passes.

::

    struct sock_filter (8 octets, host order)      struct sock_fprog
     0  code     u16                                0  len      u16, padded
     2  jt, jf   u8: steps to skip if (not) true    8  filter   pointer
     4  k        u32

What is to pass is for the socket's users to say. linux/filter.h, Documentation/networking/filter.rst.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

_SO_ATTACH_FILTER = 26

# Codes of steps. A is what they work on, X an index; on raw IPv4 sockets packets begin with IP.
LOAD_U16 = 0x28  # A = the two octets at k
LOAD_U16_AT_X = 0x48  # A = the two octets at X + k
LOAD_IP_HEADER_SIZE = 0xB1  # X = the octets of the IPv4 header that begins at k
IF_EQUAL = 0x15  # A == k
IF_GREATER = 0x25  # A > k
IF_AT_LEAST = 0x35  # A >= k
RETURN = 0x06  # pass k octets of the packet


class Step(NamedTuple):
    """One instruction; of a condition ``then`` and ``otherwise`` say how many steps to skip."""

    code: int
    k: int = 0
    then: int = 0
    otherwise: int = 0


PASS = Step(RETURN, 0xFFFFFFFF)
DROP = Step(RETURN, 0)


def pack(program: Sequence[Step]) -> bytes:
    """Return a program as the kernel wants it."""
    return b"".join(
        struct.pack("=HBBI", step.code, step.then, step.otherwise, step.k) for step in program
    )


def attach(sock: socket.socket, program: Sequence[Step]) -> None:
    """Have a socket given only what ``program`` passes, in place of what one before it passed.

    What has arrived already is not looked at again. Raises `OSError` for a program that is none.
    """
    code = ctypes.create_string_buffer(pack(program))
    attached = struct.pack("@HL", len(program), ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, attached)

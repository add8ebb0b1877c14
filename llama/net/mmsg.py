"""Batches of datagrams through ``recvmmsg(2)`` and ``sendmmsg(2)``: the only struct layouts here.

A `Messages` is room for a fixed number of datagrams, laid out as the kernel wants it and viewed
through numpy, so that a batch is received, decoded by column, changed in place and sent without a
Python object per packet. The layouts are those of 64-bit Linux::

    struct mmsghdr (64 octets)                  struct cmsghdr (16 octets, data follows, padded to 8)
     0  msg_name        pointer                  0  cmsg_len    size_t, header included
     8  msg_namelen     u32, 4 octets padding    8  cmsg_level  int
    16  msg_iov         pointer                 12  cmsg_type   int
    24  msg_iovlen      size_t
    32  msg_control     pointer                 struct sockaddr_in / sockaddr_in6
    40  msg_controllen  size_t                   0  family      u16
    48  msg_flags       int, 4 octets padding    2  port        u16, network order
    56  msg_len         u32, 4 octets padding    4  address 4   |  4 flowinfo, 8 address 16, 24 scope

It decides nothing: what to receive, to whom to answer, and when, is for its users.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[Any]

MMSGHDR = np.dtype(
    {
        "names": [
            "name", "namelen", "iov", "iovlen", "control", "controllen", "flags", "len",
        ],
        "formats": ["<u8", "<u4", "<u8", "<u8", "<u8", "<u8", "<i4", "<u4"],
        "offsets": [0, 8, 16, 24, 32, 40, 48, 56],
        "itemsize": 64,
    }
)  # fmt: skip
IOVEC = np.dtype([("base", "<u8"), ("len", "<u8")])
SOCKADDR_IN = np.dtype([("family", "<u2"), ("port", ">u2"), ("address", ">u4"), ("zero", "V8")])
SOCKADDR_IN6 = np.dtype(
    [
        ("family", "<u2"), ("port", ">u2"), ("flowinfo", ">u4"),
        ("high", ">u8"), ("low", ">u8"), ("scope", "<u4"),
    ]
)  # fmt: skip
NAME_ROOM = 32  # a sockaddr_in6 has 28 octets
# The same in words of 8 octets, for plain Python: how many there are, and which says what. What
# pads a word means nothing.
_HEADER_WORDS, _NAMELEN, _IOVLEN, _CONTROLLEN, _FLAGS, _LEN = 8, 1, 3, 5, 6, 7
_IOV_WORDS, _HEAD_LEN, _TAIL_LEN = 4, 1, 3

# Socket options and ancillary types that the socket module does not name everywhere.
SOL_IP, SOL_IPV6, SOL_SOCKET = 0, 41, 1
IP_TOS, IP_TTL, IP_PKTINFO, IP_MTU_DISCOVER, IP_RECVERR = 1, 2, 8, 10, 11
IP_RECVTTL, IP_RECVTOS = 12, 13
IP_PMTUDISC_PROBE, IP_PMTUDISC_OMIT = 3, 5
IPV6_MTU_DISCOVER, IPV6_RECVERR = 23, 25
IPV6_RECVPKTINFO, IPV6_PKTINFO, IPV6_RECVHOPLIMIT, IPV6_HOPLIMIT = 49, 50, 51, 52
IPV6_RECVTCLASS, IPV6_TCLASS = 66, 67
SO_TIMESTAMPING = 37
SCM_TS_OPT_ID = 81
SO_MEMINFO = 55
SOF_TX_SOFTWARE, SOF_RX_SOFTWARE, SOF_SOFTWARE = 1 << 1, 1 << 3, 1 << 4
SOF_OPT_ID, SOF_OPT_CMSG, SOF_OPT_TSONLY = 1 << 7, 1 << 10, 1 << 11
MSG_DONTWAIT, MSG_ERRQUEUE, MSG_TRUNC = 0x40, 0x2000, 0x20

AVAILABLE = (
    sys.platform.startswith("linux")
    and ctypes.sizeof(ctypes.c_void_p) == 8
    and sys.byteorder == "little"
)
if AVAILABLE:
    _libc = ctypes.CDLL(None, use_errno=True)
    try:
        _recvmmsg, _sendmmsg = _libc.recvmmsg, _libc.sendmmsg
    except AttributeError:  # pragma: no cover - a libc without them
        AVAILABLE = False
    else:
        _recvmmsg.argtypes = (
            ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p,
        )  # fmt: skip
        _sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)


def cmsg_space(octets: int) -> int:
    """Return the room that ancillary data of ``octets`` octets takes, header and padding included."""
    return 16 + (octets + 7 & ~7)


class Messages:
    """Room for ``slots`` datagrams, their addresses and ancillary data.

    A datagram's first ``size`` octets lie in ``octets``, (slots, size) uint8: dense, because this is
    what is read and written by column. What is longer goes to a tail of ``tail`` octets per slot
    (``tails``), or, with ``padding``, always comes from that one array, shared by all slots.
    ``control`` is (slots, control) uint8, ``headers`` MMSGHDR, ``iov`` (slots, 2) IOVEC; ``names4`` and
    ``names6`` view the same addresses as SOCKADDR_IN and SOCKADDR_IN6. With ``share`` octets,
    tails and addresses are those of another `Messages`: a reply is written into the request and
    sent with ancillary data of its own.
    """

    def __init__(
        self,
        slots: int,
        size: int,
        control: int,
        *,
        tail: int = 0,
        padding: npt.NDArray[np.uint8] | None = None,
        share: Messages | None = None,
    ) -> None:
        self.slots = slots
        self.size = size
        self.control_room = control + 7 & ~7
        if share is None:
            self.octets = np.zeros((slots, size), np.uint8)
            self.names = np.zeros((slots, NAME_ROOM), np.uint8)
            self.tails = np.zeros((slots, tail if padding is None else 0), np.uint8)
        else:
            self.octets, self.names, self.tails = share.octets, share.names, share.tails
            tail = self.tails.shape[1]
        self.names4: Column = self.names[:, : SOCKADDR_IN.itemsize].view(SOCKADDR_IN)[:, 0]
        self.names6: Column = self.names[:, : SOCKADDR_IN6.itemsize].view(SOCKADDR_IN6)[:, 0]
        self.control = np.zeros((slots, self.control_room), np.uint8)
        self.words: npt.NDArray[np.uint64] = self.control.view("<u8")
        self.iov: Column = np.zeros((slots, 2), IOVEC)
        self.headers: Column = np.zeros(slots, MMSGHDR)
        rows = np.arange(slots, dtype=np.uint64)
        self.iov["base"][:, 0] = self.octets.ctypes.data + rows * np.uint64(size)
        self.iov["len"][:, 0] = size
        if padding is not None:
            self._padding = padding  # keeps it alive: the kernel is given its address
            self.iov["base"][:, 1] = padding.ctypes.data
        elif tail:
            self.iov["base"][:, 1] = self.tails.ctypes.data + rows * np.uint64(tail)
            self.iov["len"][:, 1] = tail
        self.headers["name"] = self.names.ctypes.data + rows * np.uint64(NAME_ROOM)
        self.headers["iov"] = self.iov.ctypes.data + rows * np.uint64(2 * IOVEC.itemsize)
        self.headers["iovlen"] = 2 if tail else 1
        self.headers["control"] = self.control.ctypes.data + rows * np.uint64(self.control_room)
        # Field views are made once: making one costs as much as using it.
        self.length: Column = self.headers["len"]
        self.namelen: Column = self.headers["namelen"]
        self.controllen: Column = self.headers["controllen"]
        self.flags: Column = self.headers["flags"]
        self.iovlen: Column = self.headers["iovlen"]
        self.iov_length: Column = self.iov["len"][:, 0]
        self.tail_length: Column = self.iov["len"][:, 1]
        self._address = self.headers.ctypes.data
        self._picked: Column = np.zeros(slots, MMSGHDR)
        self._picked_address = self._picked.ctypes.data
        self._dirty = slots
        # Plain Python reads and writes single packets through these.
        self.header_words = self.headers.view("<u8").data
        self.iov_words = self.iov.reshape(-1).view("<u8").data
        self.octets_view = self.octets.data.cast("B")
        self.control_view = self.control.data.cast("B")
        self.names_view = self.names.data.cast("B")

    def receive(self, fd: int, first: int = 0, flags: int = MSG_DONTWAIT) -> int:
        """Receive datagrams into the slots from ``first`` on and return how many came.

        Returns 0 where there are none. Raises `OSError` for an error pending on the socket. What
        the kernel overwrote in the headers last time is put right first. ``length`` tells how much
        of each datagram is there; with ``MSG_TRUNC`` among the flags, how long it was.
        """
        if self._dirty == first + 1:  # in a tenth of the time
            word = first * _HEADER_WORDS
            self.header_words[word + _NAMELEN] = NAME_ROOM
            self.header_words[word + _CONTROLLEN] = self.control_room
        else:
            used = slice(first, max(first, self._dirty))
            self.namelen[used] = NAME_ROOM
            self.controllen[used] = self.control_room
        count: int = _recvmmsg(
            fd, self._address + first * MMSGHDR.itemsize, self.slots - first, flags, None
        )
        if count < 0:
            self._dirty = first
            code = ctypes.get_errno()
            if code in (errno.EAGAIN, errno.EINTR):
                return 0
            raise OSError(code, os.strerror(code))
        self._dirty = first + count
        return count

    def received(self, row: int) -> tuple[int, int]:
        """Return (length, flags) of what was received into one slot."""
        word = row * _HEADER_WORDS
        words = self.header_words
        return words[word + _LEN] & 0xFFFFFFFF, words[word + _FLAGS] & 0xFFFFFFFF

    def describe(self, row: int, length: int, control: int, request: Messages) -> None:
        """Have one slot sent: ``length`` octets, and ``control`` of ancillary data.

        To whom the same slot of ``request`` came from.
        """
        header, iov = row * _HEADER_WORDS, row * _IOV_WORDS
        words = self.header_words
        words[header + _NAMELEN] = request.header_words[header + _NAMELEN]
        words[header + _CONTROLLEN] = control
        if length <= self.size:
            words[header + _IOVLEN] = 1
            self.iov_words[iov + _HEAD_LEN] = length
        else:
            words[header + _IOVLEN] = 2
            self.iov_words[iov + _HEAD_LEN] = self.size
            self.iov_words[iov + _TAIL_LEN] = length - self.size

    def pick(self, rows: npt.NDArray[np.intp]) -> None:
        """Line up the headers of ``rows``, so that `send` with ``picked`` sends just these, in order."""
        self._picked[: len(rows)] = self.headers[rows]

    def send(self, fd: int, first: int, count: int, *, picked: bool = False) -> int:
        """Hand ``count`` datagrams from slot ``first`` on to the kernel and return how many it took.

        With ``picked``, ``first`` counts in what `pick` lined up. Raises `OSError` if the kernel did
        not take the first of them (EAGAIN: its buffer is full).
        """
        address = self._picked_address if picked else self._address
        sent: int = _sendmmsg(fd, address + first * MMSGHDR.itemsize, count, MSG_DONTWAIT)
        if sent < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return sent


class Layout:
    """Where each kind of ancillary data lies, when the kernel gives all of ``kinds`` in that order.

    ``kinds`` are (level, type, octets of data). The offsets are the same for every datagram of a
    socket with a given set of options, so a batch is checked as a whole and read by column; only
    rows that differ are walked one by one.
    """

    def __init__(self, kinds: Sequence[tuple[int, int, int]]) -> None:
        self.kinds = tuple(kinds)
        self.offsets: dict[tuple[int, int], int] = {}
        where = []
        expected = []
        lengths: dict[int, int] = {}
        offset = 0
        for level, kind, octets in self.kinds:
            # With the total right, level and type alone tell that each piece is where it should be.
            where.append(offset // 8 + 1)
            expected.append(kind << 32 | level)
            lengths[offset // 8] = 16 + octets
            self.offsets[level, kind] = offset + 16
            offset += cmsg_space(octets)
        self.room = offset
        self._where = np.array(where, np.intp)
        self._expected = np.array(expected, np.uint64)
        self._lengths = lengths

    def word(self, level: int, kind: int) -> int:
        """Return in which 8-octet word of the ancillary data that kind's data starts."""
        return self.offsets[level, kind] // 8

    def odd_rows(self, messages: Messages, first: int, end: int) -> npt.NDArray[np.intp]:
        """Return the numbers of the rows (absolute) that do not have exactly this layout."""
        headers = messages.words[first:end].take(self._where, axis=1) == self._expected
        whole = messages.controllen[first:end] == self.room
        # Counting is what numpy does fastest with truth values.
        if np.count_nonzero(headers) == headers.size and np.count_nonzero(whole) == whole.size:
            return _NO_ROWS
        same = headers.all(axis=1) & whole
        return np.flatnonzero(~same) + first

    def write_headers(self, messages: Messages) -> None:
        """Write this layout's headers into all slots of ``messages``, for sending."""
        messages.words[:, self._where] = self._expected
        for word, octets in self._lengths.items():
            messages.words[:, word] = octets
        messages.controllen[:] = self.room


_NO_ROWS = np.empty(0, np.intp)


def walk_control(control: memoryview, length: int) -> Iterator[tuple[int, int, memoryview]]:
    """Yield (level, type, data) of each piece of ancillary data in ``control[:length]``."""
    offset = 0
    while offset + 16 <= length:
        octets, level, kind = struct.unpack_from("<qii", control, offset)
        if octets < 16 or offset + octets > length:
            return
        yield level, kind, control[offset + 16 : offset + octets]
        offset += octets + 7 & ~7


def receive_layout(family: int) -> Layout:
    """Return the ancillary layout of a socket with ``SO_TIMESTAMPING`` and `enable_receive_options`."""
    stamp = (SOL_SOCKET, SO_TIMESTAMPING, 48)
    if family == socket.AF_INET:
        return Layout([stamp, (SOL_IP, IP_PKTINFO, 12), (SOL_IP, IP_TTL, 4), (SOL_IP, IP_TOS, 1)])
    return Layout(
        [
            stamp,
            (SOL_IPV6, IPV6_PKTINFO, 20),
            (SOL_IPV6, IPV6_HOPLIMIT, 4),
            (SOL_IPV6, IPV6_TCLASS, 4),
        ]
    )


def enable_receive_options(sock: socket.socket) -> None:
    """Ask the kernel to tell each datagram's addressee, TTL and traffic class."""
    if sock.family == socket.AF_INET:
        for option in (IP_PKTINFO, IP_RECVTTL, IP_RECVTOS):
            sock.setsockopt(SOL_IP, option, 1)
    else:
        for option in (IPV6_RECVPKTINFO, IPV6_RECVHOPLIMIT, IPV6_RECVTCLASS):
            sock.setsockopt(SOL_IPV6, option, 1)


def forbid_fragments(sock: socket.socket) -> None:
    """Send nothing in fragments, and whatever the MTU is said to be: what is too large is lost."""
    level, option = (
        (SOL_IP, IP_MTU_DISCOVER)
        if sock.family == socket.AF_INET
        else (SOL_IPV6, IPV6_MTU_DISCOVER)
    )
    sock.setsockopt(level, option, IP_PMTUDISC_PROBE)


def believe_no_path_mtu(sock: socket.socket) -> None:
    """Send over IPv4 whole what fits the device, and leave it to routers to cut it up.

    How little fits the way is told by ICMP errors that anybody can forge who knows a port of ours; what
    leaves in fragments then takes other ways, since all but the first have no ports. Over IPv6, where
    routers do not fragment, they are believed.
    """
    if sock.family == socket.AF_INET:
        sock.setsockopt(SOL_IP, IP_MTU_DISCOVER, IP_PMTUDISC_OMIT)


def receive_drops(sock: socket.socket) -> int:
    """Return how many datagrams the kernel has dropped at this socket since it was opened.

    From ``SO_MEMINFO``'s ``SK_MEMINFO_DROPS``, which, unlike ``SO_RXQ_OVFL``, needs no later packet
    to tell. Counts modulo 2**32. They found no room, or arrived damaged: see `llama.net.drops`.
    """
    words = sock.getsockopt(SOL_SOCKET, SO_MEMINFO, 36)
    drops: int = struct.unpack_from("<I", words, 32)[0]
    return drops

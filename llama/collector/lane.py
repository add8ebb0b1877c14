"""Room for probes to send and for what comes back, of one address family."""

from __future__ import annotations

import socket
from typing import Any

import numpy as np
import numpy.typing as npt

from llama.net import mmsg
from llama.net.mmsg import Layout, Messages
from llama.net.port import stamp_layout
from llama.wire import stamp

BURST = 32  # probes handed to the kernel at once
ARENA = 384  # replies looked at together
HEAD = 192  # octets of a packet that are written or read by column: all that formats look at
LONGEST = 9216  # octets of UDP payload


class Lane:
    """The message rooms of one address family."""

    def __init__(self, family: int, *, ids: bool, padding: npt.NDArray[np.uint8]) -> None:
        self.family = family
        v4 = family == socket.AF_INET
        tos = (mmsg.SOL_IP, mmsg.IP_TOS) if v4 else (mmsg.SOL_IPV6, mmsg.IPV6_TCLASS)
        identifier = [(mmsg.SOL_SOCKET, mmsg.SCM_TS_OPT_ID, 4)] if ids else []
        layout = Layout([*identifier, (*tos, 4)])
        self._classed = layout.room
        self._unclassed = layout.offsets[tos] - 16
        self.out = Messages(BURST, HEAD, layout.room, tail=LONGEST, padding=padding)
        self.out.namelen[:] = mmsg.SOCKADDR_IN.itemsize if v4 else mmsg.SOCKADDR_IN6.itemsize
        layout.write_headers(self.out)
        self._tos = self.out.words[:, layout.word(*tos)]
        self.id = self.out.words[:, layout.word(*identifier[0][:2])] if ids else None
        probes = stamp.sender_view(self.out.octets)
        self.sequence: npt.NDArray[Any] = probes["sequence"]
        self.timestamp: npt.NDArray[Any] = probes["timestamp"]

        #: The track whose templates lie in ``out``, if all its probes are alike.
        self.filled_for: Any = None

        self.layout = mmsg.receive_layout(family, stamping=True)
        self.back = Messages(ARENA, HEAD, self.layout.room)
        self.socket_of = np.zeros(ARENA, np.uint64)
        self.replies = stamp.reflector_view(self.back.octets)
        level = mmsg.SOL_IP if v4 else mmsg.SOL_IPV6
        self.tos_word = self.layout.word(level, mmsg.IP_TOS if v4 else mmsg.IPV6_TCLASS)
        self.ttl_word = self.layout.word(level, mmsg.IP_TTL if v4 else mmsg.IPV6_HOPLIMIT)

        self.stamp_layout = stamp_layout(family)
        error = (mmsg.SOL_IP, mmsg.IP_RECVERR) if v4 else (mmsg.SOL_IPV6, mmsg.IPV6_RECVERR)
        # struct sock_extended_err: errno u32, origin type code pad, info u32, data u32 (the id).
        self.id_word = self.stamp_layout.word(*error) + 1
        # A stamp without an identifier comes with its packet, which must then fit in.
        # The few octets are what an ICMP error quotes of a packet of a trace.
        self.stamps = Messages(ARENA, 16 if ids else 2048, 256)

    def put_class(self, rows: slice, tos: npt.NDArray[np.uint64] | np.uint64) -> None:
        """Give probes to be sent a TOS or traffic class octet: one each, or one for all."""
        self._tos[rows] = tos
        # Best effort is what the socket sends by itself, and cheaper not to be told.
        self.out.controllen[rows] = np.where(tos == 0, self._unclassed, self._classed)

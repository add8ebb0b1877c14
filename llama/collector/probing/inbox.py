"""Room for what comes back, of one address family."""

from __future__ import annotations

import socket

import numpy as np

from llama.net import mmsg
from llama.net.mmsg import Messages
from llama.net.port import stamp_layout
from llama.wire import stamp

ARENA = 768  # replies looked at together
HEAD = 192  # octets of a packet that are written or read by column: all that formats look at
QUOTED = 32  # octets of what an ICMP error quotes of a packet that are looked at


class Inbox:
    """The message rooms of one address family; of a reply `HEAD` octets are kept, and ``tail`` more."""

    def __init__(self, family: int, *, ids: bool, tail: int = 0) -> None:
        self.family = family
        v4 = family == socket.AF_INET
        self.layout = mmsg.receive_layout(family)
        self.back = Messages(ARENA, HEAD, self.layout.room, tail=tail)
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
        # The few octets are what an ICMP error quotes of a packet.
        self.stamps = Messages(ARENA, QUOTED if ids else 2048, 256)

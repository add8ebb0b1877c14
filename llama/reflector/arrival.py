"""What the kernel says of one datagram that came: from whom, to which address, when, TTL and class."""

from __future__ import annotations

import socket
import struct

from attrs import define

from llama.net import mmsg
from llama.net.port import BatchPort
from llama.reflector.allow import MAPPED
from llama.wire import stamp

# The ancillary data of an IPv4 datagram as it nearly always comes: stamp, PKTINFO, TTL, TOS.
_USUAL_V4 = struct.Struct("<16sqq32x16s4xII4x16si4x16sB")
_USUAL_HEADERS_V4 = tuple(
    struct.pack("<qii", 16 + octets, level, kind)
    for level, kind, octets in mmsg.receive_layout(socket.AF_INET).kinds
)
_PKTINFO_V4 = struct.Struct("<4xII")
# Of a sockaddr_in and a sockaddr_in6: port and address.
_NAME_V4 = struct.Struct(">2xHI")
_NAME_V6 = struct.Struct(">2xH4xQQ")
_PAIR = struct.Struct(">QQ")


@define(eq=False)
class Arrival:
    """One datagram's circumstances; None where the platform does not tell."""

    high: int  # source address as IPv6 (IPv4 mapped), upper 64 bits
    low: int
    port: int  # source port
    local: int = 0  # the address asked, folded to 64 bits
    received_ntp: int | None = None  # kernel's receive stamp
    ttl: int | None = None
    tos: int | None = None
    unicast: bool = True  # False: sent to a group, to everybody, or by nobody who can be answered


def packed_address(host: str) -> tuple[int, int]:
    """Return an address as two 64-bit halves of an IPv6 address; IPv4 as ::ffff:a.b.c.d."""
    if ":" in host:
        high, low = _PAIR.unpack(socket.inet_pton(socket.AF_INET6, host.partition("%")[0]))
        return high, low
    return 0, MAPPED | int.from_bytes(socket.inet_aton(host), "big")


def presentable(arrival: Arrival) -> str:
    """Return the source of a datagram as people write it."""
    if not arrival.high and arrival.low >> 32 == 0xFFFF:
        return f"{socket.inet_ntoa((arrival.low & 0xFFFFFFFF).to_bytes(4, 'big'))}:{arrival.port}"
    packed = _PAIR.pack(arrival.high, arrival.low)
    return f"[{socket.inet_ntop(socket.AF_INET6, packed)}]:{arrival.port}"


def is_somebody(high: int, low: int) -> bool:
    """Tell whether a host may have this address of IPv6, by its halves.

    Who says to have an IPv4 address would pass for that host of IPv4, and what is sent to nobody (``::``)
    the kernel takes to loopback, to whatever listens there for this machine alone.
    """
    return bool(high or (low and low >> 32 != MAPPED >> 32))


def read_source(port: BatchPort, row: int) -> tuple[int, int]:
    """Return the two halves of the address that one datagram of a batch came from, IPv4 mapped."""
    name = row * mmsg.NAME_ROOM
    if port.family == socket.AF_INET:
        return 0, MAPPED | _NAME_V4.unpack_from(port.inbound.names_view, name)[1]
    _, high, low = _NAME_V6.unpack_from(port.inbound.names_view, name)
    return high, low


def read_arrival(port: BatchPort, row: int) -> tuple[Arrival, bytes]:
    """Return what the kernel said of one datagram of a batch, and the PKTINFO to answer it with."""
    inbound = port.inbound
    v4 = port.family == socket.AF_INET
    name = row * mmsg.NAME_ROOM
    first = row * inbound.control_room
    if v4:
        source_port, address = _NAME_V4.unpack_from(inbound.names_view, name)
        if inbound.control_room >= _USUAL_V4.size:
            a, seconds, ns, b, asked, destination, c, ttl, d, tos = _USUAL_V4.unpack_from(
                inbound.control_view, first
            )
            if (a, b, c, d) == _USUAL_HEADERS_V4:
                received = stamp.ntp_from_unix_ns(seconds * 1_000_000_000 + ns)
                arrival = Arrival(
                    0, MAPPED | address, source_port, asked, received, ttl, tos,
                    asked == destination,
                )  # fmt: skip
                return arrival, _PKTINFO_V4.pack(asked, destination)
        arrival = Arrival(0, MAPPED | address, source_port)
    else:
        source_port, high, low = _NAME_V6.unpack_from(inbound.names_view, name)
        arrival = Arrival(high, low, source_port, unicast=is_somebody(high, low))
    control = inbound.control_view[first : first + inbound.control_room]
    reply_from = bytes(12 if v4 else 20)
    for level, kind, data in mmsg.walk_control(control, int(inbound.controllen[row])):
        if level == mmsg.SOL_SOCKET and kind == mmsg.SO_TIMESTAMPING:
            seconds, ns = struct.unpack_from("<qq", data)
            if seconds:
                arrival.received_ntp = stamp.ntp_from_unix_ns(seconds * 1_000_000_000 + ns)
        elif (level, kind) == (mmsg.SOL_IP, mmsg.IP_PKTINFO):
            arrival.local = int(struct.unpack_from("<I", data, 4)[0])
            arrival.unicast = data[4:8] == data[8:12]
            reply_from = bytes(4) + bytes(data[4:12])
        elif (level, kind) == (mmsg.SOL_IPV6, mmsg.IPV6_PKTINFO):
            upper, lower = struct.unpack_from("<QQ", data)
            arrival.local = (upper * 31 & 0xFFFFFFFFFFFFFFFF) ^ lower
            near = upper & 0xC0FF == 0x80FE
            arrival.unicast &= upper & 0xFF != 0xFF
            reply_from = bytes(data[:16]) + (bytes(data[16:20]) if near else bytes(4))
        elif (level, kind) in ((mmsg.SOL_IP, mmsg.IP_TTL), (mmsg.SOL_IPV6, mmsg.IPV6_HOPLIMIT)):
            arrival.ttl = data[0]
        elif (level, kind) in ((mmsg.SOL_IP, mmsg.IP_TOS), (mmsg.SOL_IPV6, mmsg.IPV6_TCLASS)):
            arrival.tos = data[0]
    return arrival, reply_from

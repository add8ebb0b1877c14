"""A sender that is not ours: sends probes to a reflector and prints, as JSON, what came back.

``python sender.py '[{"host": …, "port": …, "kind": …}, …]'``, one run after the other. Other keys:
count, ssid, tos, size (octets of plain padding behind the base packet), tlvs ([[flags, type, value
in hexadecimal], …]), key (hexadecimal), raw (the whole probe in hexadecimal), source_port, bind,
wait_s, burst. Kinds: stamp, stamp-auth, twamp-light (the first 14 octets of a probe, then ``size``),
llama-go, llama-python, raw.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time

import formats
from scapy.packet import Packet


def probe(want: dict, number: int) -> bytes:
    """Return the ``number``-th probe."""
    kind, padding = want["kind"], bytes(want.get("size", 0))
    if kind == "raw":
        return bytes.fromhex(want["raw"])
    if kind == "llama-go":
        tos = want.get("tos_field", want.get("tos", 0))
        field = None if tos is None else bytes(tos) if isinstance(tos, list) else bytes((tos,))
        return formats.go_probe(number.to_bytes(10, "big"), field)
    if kind == "llama-python":
        return formats.python_probe(want.get("tos", 0))
    tlvs = [formats.Tlv(flags=flags, type=type_, len=len(value) // 2, value=bytes.fromhex(value))
            for flags, type_, value in want.get("tlvs", ())]  # fmt: skip
    if kind == "stamp-auth":
        packet: Packet = formats.AuthProbe(
            seq=number, ts=formats.ntp_now(), err_estimate=0x8001, ssid=want.get("ssid", 1),
            tlv_objects=tlvs,
        )  # fmt: skip
        return formats.signed(bytes(packet), bytes.fromhex(want["key"])) + padding
    packet = formats.Probe(
        seq=number, ts=time.time() + formats.EPOCH, err_estimate=formats.error_estimate(),
        ssid=want.get("ssid", 1), tlv_objects=tlvs,
    )  # fmt: skip
    return (bytes(packet)[:14] if kind == "twamp-light" else bytes(packet)) + padding


def read(want: dict, data: bytes, ancillary: list) -> dict:
    """Return what a reply says, as scapy reads it."""
    said: dict = {"octets": data.hex()}
    for _level, kind, value in ancillary:
        name = {1: "tos", 67: "tos", 2: "ttl", 52: "ttl"}.get(kind)
        if name is not None:
            said[name] = value[0]
    if want["kind"] in ("llama-go", "llama-python", "raw") or len(data) < 44:
        return said
    if not want.get("tlvs"):  # scapy takes padding for TLVs, hundreds of them
        data = data[:112] if want["kind"] == "stamp-auth" else data[:44]
    if want["kind"] == "stamp-auth":
        said["genuine"] = formats.is_signed(data, bytes.fromhex(want["key"]))
        packet: Packet = formats.AuthReply(data)
        times = [packet.ts_sender, packet.ts_rx, packet.ts]
    else:
        packet = formats.Reply(data)
        times = [packet.fields[name] for name in ("ts_sender", "ts_rx", "ts")]
    for name in ("seq", "ssid", "seq_sender", "ttl_sender"):
        said[name] = getattr(packet, name)
    said["mbz"] = sum(value for name, value in packet.fields.items() if name.startswith("mbz"))
    said["times"] = times
    if want.get("tlvs"):
        said["tlvs"] = [[int(each.flags), each.type, bytes(each.value).hex()]
                        for each in packet.tlv_objects]  # fmt: skip
    return said


def run(want: dict) -> dict:
    """Send and receive; return what was sent and what came back."""
    family = socket.AF_INET6 if ":" in want["host"] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    tos = want.get("tos", 0)
    if family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        sock.setsockopt(socket.IPPROTO_IP, 13, 1)  # IP_RECVTOS
        sock.setsockopt(socket.IPPROTO_IP, 12, 1)  # IP_RECVTTL
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, tos)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
    sock.bind((want.get("bind", "::" if family == socket.AF_INET6 else "127.0.0.1"),
               want.get("source_port", 0)))  # fmt: skip
    count, burst = want.get("count", 3), want.get("burst", False)
    replies: list[dict] = []

    def receive(until: int, wait_s: float) -> None:
        end = time.monotonic() + wait_s
        while len(replies) < until and (left := end - time.monotonic()) > 0:
            if select.select([sock], [], [], left)[0]:
                data, ancillary, _, _ = sock.recvmsg(65536, 512)
                replies.append(read(want, data, ancillary))

    sent = []
    for number in range(count):
        data = probe(want, number)
        sent.append(data.hex())
        sock.sendto(data, (want["host"], want["port"]))
        if not burst:
            receive(number + 1, want.get("wait_s", 2.0))
    receive(count, want.get("wait_s", 2.0))
    return {"sent": sent, "replies": replies, "now": formats.ntp_now()}


if __name__ == "__main__":
    print(json.dumps([run(want) for want in json.loads(sys.argv[1])]))

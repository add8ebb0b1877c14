"""Reflectors that are not ours: ``python reflector.py KIND [KEY [LOSE]]`` prints its port and answers.

It ends when its standard input is closed. With LOSE, every probe of that turn never reaches it. Kinds,
all on 127.0.0.1:

rfc8762       stateless: repeats the sender's numbers, returns a zero SSID, copies what is behind
rfc8762-6     stateful by address and port alone, returns a zero SSID, copies what is behind
rfc8972       stateful by address, port and SSID; knows Class of Service, marks other TLVs U=1
twamp-light   38 octets to anything, one time stamp for both, the counter anew after 30 s of rest
stamp-auth    rfc8972 with the key given in hexadecimal; drops what is not genuine
llama-go      echoes a protobuf with its TOS applied
llama-python  echoes 36 octets with their TOS applied
"""

from __future__ import annotations

import selectors
import socket
import sys
import time

import formats


class Peer:
    """One kind of reflector and what it remembers of its sessions."""

    def __init__(self, kind: str, key: bytes) -> None:
        self.kind = kind
        self.key = key
        self.counters: dict[tuple, int] = {}
        self.last_s = 0.0

    def number(self, *session: object) -> int:
        """Return the next number of a session."""
        number = self.counters.get(session, 0)
        self.counters[session] = number + 1
        return number

    def answer(self, data: bytes, ttl: int, tos: int, peer: tuple) -> tuple[bytes, int] | None:
        """Return the reply to a datagram and its TOS, or None."""
        now = formats.ntp_now()
        if self.kind == "llama-python":
            return (data, data[10]) if len(data) == 36 else None
        if self.kind == "llama-go":
            return data, data[14]
        if self.kind == "stamp-auth":
            return self.answer_authenticated(data, ttl, tos, peer, now)
        probe = formats.Probe(data.ljust(44, b"\0"))
        if self.kind == "twamp-light":
            if time.monotonic() - self.last_s > 30:
                self.counters.clear()
            self.last_s = time.monotonic()
        stateless = self.kind == "rfc8762"
        reply = formats.Reply(
            seq=probe.seq
            if stateless
            else self.number(peer, self.kind != "rfc8762-6" and probe.ssid),
            err_estimate=formats.error_estimate(),
            ssid=probe.ssid if self.kind == "rfc8972" else 0,
            seq_sender=probe.seq,
            err_estimate_sender=probe.err_estimate,
            ttl_sender=ttl,
        )
        out = bytearray(bytes(reply))
        out[28:36] = data[4:12]
        out[16:24] = now.to_bytes(8, "big")
        out[4:12] = (now if self.kind == "twamp-light" else formats.ntp_now()).to_bytes(8, "big")
        if self.kind == "twamp-light":
            return bytes(out[:38]), tos & 0xFC
        rest, reply_tos = data[44:], tos & 0xFC
        if self.kind == "rfc8972":
            rest, reply_tos = self.answer_tlvs(probe.tlv_objects, tos)
        return bytes(out) + rest, reply_tos

    @staticmethod
    def answer_tlvs(tlvs: list, tos: int) -> tuple[bytes, int]:
        """Return the TLVs of a reply and its TOS: DSCP1 is always granted."""
        out, reply_tos = b"", tos & 0xFC
        for each in tlvs:
            flags, value = 0x80, bytes(each.value)
            if each.type in (1, 8):
                flags = 0
            elif each.type == 4 and len(value) == 4:
                flags, reply_tos = 0, value[0] & 0xFC
                value = ((value[0] & 0xFC) << 8 | tos << 2).to_bytes(2, "big") + b"\0\0"
            out += bytes(formats.Tlv(flags=flags, type=each.type, len=len(value), value=value))
        return out, reply_tos

    def answer_authenticated(
        self, data: bytes, ttl: int, tos: int, peer: tuple, now: int
    ) -> tuple[bytes, int] | None:
        """Return the reply to a genuine authenticated probe."""
        if not formats.is_signed(data, self.key):
            return None
        probe = formats.AuthProbe(data)
        reply = formats.AuthReply(
            seq=self.number(peer, probe.ssid), err_estimate=0x8001, ssid=probe.ssid, ts_rx=now,
            seq_sender=probe.seq, ts_sender=probe.ts, err_estimate_sender=probe.err_estimate,
            ttl_sender=ttl, ts=formats.ntp_now(),
        )  # fmt: skip
        rest, reply_tos = self.answer_tlvs(probe.tlv_objects, tos)
        return formats.signed(bytes(reply) + rest, self.key), reply_tos


def main(kind: str, key: str = "", lose: str = "0") -> None:
    """Answer until the standard input is closed."""
    peer = Peer(kind, bytes.fromhex(key))
    came = 0
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.setsockopt(socket.IPPROTO_IP, 13, 1)  # IP_RECVTOS
    sock.setsockopt(socket.IPPROTO_IP, 12, 1)  # IP_RECVTTL
    watched = selectors.DefaultSelector()
    watched.register(sock, selectors.EVENT_READ)
    watched.register(sys.stdin, selectors.EVENT_READ)
    print(sock.getsockname()[1], flush=True)
    while True:
        ready = [key.fileobj for key, _ in watched.select()]
        if sys.stdin in ready:
            return
        data, ancillary, _, source = sock.recvmsg(65536, 512)
        came += 1
        if int(lose) and came % int(lose) == 0:
            continue
        said = {kind: value[0] for _level, kind, value in ancillary}
        answer = peer.answer(data, said.get(2, 0), said.get(1, 0), source)
        if answer is not None:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, answer[1])
            sock.sendto(answer[0], source)


if __name__ == "__main__":
    main(*sys.argv[1:])

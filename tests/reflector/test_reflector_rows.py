"""What a reflector makes of single rows and single stamps that come out of the usual order."""

from __future__ import annotations

import struct
from ipaddress import ip_network
from typing import Any

import numpy as np
from reflector_case import ReflectorCase, probe

from llama.reflector import protocol
from llama.reflector.allow import AllowList
from llama.reflector.departures import latest_rows
from llama.reflector.guard import Guard
from llama.wire import stamp

SECONDS, NS = 1_714_564_800, 250_000_000


class LateStampTests(ReflectorCase):
    def told(self, place: int, number: int, *, alone: bool) -> tuple[int, int]:
        """Hand over the transmit stamp of a reply; return what its place knows then."""
        shift = self.protocol.departures.shift
        identifier = place | (number & self.protocol.departures.mask) << shift
        if alone:
            self.protocol.transmitStampReceived(identifier, SECONDS, NS)
        else:
            columns = ([identifier] * 2, [SECONDS] * 2, [NS] * 2)
            self.protocol.transmitStampsReceived(*(np.array(each, np.uint64) for each in columns))
        sessions = self.protocol.sessions
        return int(sessions.follow_sequence[place]), int(sessions.follow_stamp[place])

    def test_a_stamp_of_the_session_before(self) -> None:
        """A stamp that is read after its place changed hands tells the new session nothing."""
        left = stamp.ntp_from_unix_ns(SECONDS * 10**9 + NS)
        for alone in (True, False):
            sessions = self.protocol.sessions
            sessions.sent[5] = 1  # the new session's first reply; the old one's was number 40
            sessions.follow_sequence[5] = sessions.follow_stamp[5] = 0
            self.assertEqual((0, 0), self.told(5, 40, alone=alone))
            sessions.sent[5] = 0
            self.assertEqual((0, 0), self.told(5, 0, alone=alone))
            sessions.sent[5] = 42
            self.assertEqual((40, left), self.told(5, 40, alone=alone))

    def test_numbers_of_many_turns(self) -> None:
        """A session that outlasted the identifiers' bits is told the whole number."""
        sent = (self.protocol.departures.mask + 1) * 3 + 7
        for alone in (True, False):
            self.protocol.sessions.sent[9] = sent
            self.assertEqual(sent - 2, self.told(9, sent - 2, alone=alone)[0])

    def test_several_of_one_session(self) -> None:
        """Of several stamps of one session that are read together the latest is told."""
        departures, sessions = self.protocol.departures, self.protocol.sessions
        sessions.sent[[3, 7]] = 40
        places = [3, 7, 3, 3, 7]
        self.assertEqual([3, 4], latest_rows(np.array(places)).tolist())
        self.assertEqual([0], latest_rows(np.array([5])).tolist())
        numbers = [34, 38, 36, 37, 39]
        identifiers = [
            place | (number & departures.mask) << departures.shift
            for place, number in zip(places, numbers, strict=True)
        ]
        seconds = range(SECONDS, SECONDS + len(places))
        columns = (identifiers, seconds, [NS] * len(places))
        self.protocol.transmitStampsReceived(*(np.array(each, np.uint64) for each in columns))
        for place, number, second in ((3, 37, SECONDS + 3), (7, 39, SECONDS + 4)):
            self.assertEqual(number, sessions.follow_sequence[place])
            left = stamp.ntp_from_unix_ns(second * 10**9 + NS)
            self.assertEqual(left, sessions.follow_stamp[place])


class UntoldTests(ReflectorCase):
    def test_an_echo_is_not_written_into_where_no_ttl_is_told(self) -> None:
        """Where the kernel does not tell a TTL a listed source's earlier format comes back as it was."""
        read = protocol.read_arrival

        def without_ttl(*place: Any) -> Any:
            arrival, reply_from = read(*place)
            arrival.ttl = None
            return arrival, reply_from

        self.patch(protocol, "read_arrival", without_ttl)
        self.protocol.guard = Guard(allow=AllowList([ip_network("127.0.0.1")]))
        python = struct.pack("<10sBddd?", b"__llama__", 0, 1.0, 0.0, 0.0, False)
        self.ask(python)
        self.assertEqual(python, self.answer())
        self.ask(probe(3))
        self.assertEqual(44, len(self.answer()))

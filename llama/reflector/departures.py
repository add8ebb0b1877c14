"""When replies really left: which session a transmit stamp belongs to, for its Follow-Up Telemetry.

A reply that is to be stamped is given an identifier, which the kernel returns with the stamp: the place
of its session and, in the bits that are left, the end of its number.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from llama.net import mmsg
from llama.net.port import BatchPort
from llama.reflector.sessions import Sessions
from llama.wire import stamp

_IDENTIFIER = struct.Struct("<I")


class Departures:
    """Asks for the transmit stamps of replies and enters them into the ``sessions`` they are of."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self.shift = (sessions.capacity - 1).bit_length()
        self.mask = (1 << 32 - self.shift) - 1  # of a number

    def ask_one(self, port: BatchPort, row: int, place: int) -> None:
        """Have the kernel stamp the last reply of a session, which lies in this row."""
        offset = port.reply_layout.offsets[mmsg.SOL_SOCKET, mmsg.SCM_TS_OPT_ID]
        number = self._sessions.sent_view[place] - 1 & self.mask
        _IDENTIFIER.pack_into(
            port.outbound.control_view,
            row * port.outbound.control_room + offset,
            place | number << self.shift,
        )
        port.stamps_due += 1

    def ask(
        self,
        port: BatchPort,
        rows: npt.NDArray[np.intp],
        places: npt.NDArray[np.intp],
        numbers: npt.NDArray[np.uint32],
    ) -> None:
        """Have the kernel stamp the replies in these rows, of these sessions and numbers: (N,) each."""
        turn = (numbers & np.uint32(self.mask)).astype(np.uint64) << np.uint64(self.shift)
        offset = port.reply_layout.offsets[mmsg.SOL_SOCKET, mmsg.SCM_TS_OPT_ID]
        port.outbound.words[rows, offset // 8] = places.astype(np.uint64) | turn
        port.outbound.controllen[rows] = port.reply_layout.room
        port.stamps_due += len(rows)

    def enter(self, identifiers: Any, seconds: Any, ns: Any) -> None:
        """Enter transmit stamps, the latest last: (N,) uint64 each, seconds since 1970.

        A stamp names a place and the low bits of a number, not a session. One that is read after its
        place went to another session is dropped unless that has been sent as many replies already;
        only then does it tell the new session of a reply of its own, but with the old one's time.
        """
        sessions = self._sessions
        places = (identifiers & np.uint64(sessions.capacity - 1)).astype(np.intp)
        rows = np.arange(len(places), dtype=np.uint32)
        if sessions.repeated(places, rows):  # which of two that are assigned stays is not defined
            latest = latest_rows(places)
            places, identifiers = places[latest], identifiers[latest]
            seconds, ns = seconds[latest], ns[latest]
        turn = (identifiers >> np.uint64(self.shift)).astype(np.uint32)
        sent = sessions.sent[places]
        newest = sent - np.uint32(1)
        behind = (newest - turn) & np.uint32(self.mask)
        known = behind < sent
        places = places[known]
        sessions.follow_sequence[places] = (newest - behind)[known]
        sessions.follow_stamp[places] = stamp.ntp_from_timespec(seconds, ns)[known]

    def enter_one(self, identifier: int, seconds: int, ns: int) -> None:
        """Do what `enter` does, for one stamp."""
        sessions = self._sessions
        place = identifier & sessions.capacity - 1
        sent = sessions.sent_view[place]
        newest = sent - 1
        behind = newest - (identifier >> self.shift) & self.mask
        if behind >= sent:  # the place has gone to a new session
            return
        sessions.follow_sequence[place] = newest - behind & 0xFFFFFFFF
        sessions.follow_stamp[place] = stamp.ntp_from_unix_ns(seconds * 1_000_000_000 + ns)


def latest_rows(places: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Return at which row each place comes for the last time."""
    _, before_the_end = np.unique(places[::-1], return_index=True)
    rows: npt.NDArray[np.intp] = len(places) - 1 - before_the_end
    return rows

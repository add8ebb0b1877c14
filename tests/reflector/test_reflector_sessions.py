"""The reflector's bounded memory of sessions."""

from __future__ import annotations

import numpy as np
from twisted.trial.unittest import SynchronousTestCase

from llama.reflector.sessions import Sessions


class SessionTests(SynchronousTestCase):
    """The bounded table of sessions."""

    def test_oldest_session_goes(self) -> None:
        """A full table forgets the session unused for longest, and counts it."""
        sessions = Sessions(64)
        keys = [sessions.key(0, n, 0, 0) for n in range(1000)]
        for now, key in enumerate(keys, 1):
            sessions.place_of(key, now)
        self.assertLessEqual(len(sessions), 64)
        self.assertEqual(sessions.evicted, 1000 - len(sessions))
        last = sessions.place_of(keys[-1], 2000)
        self.assertEqual(sessions.place_of(keys[-1], 2001), last)

    def test_columns_and_single_look_ups_agree(self) -> None:
        """A session found by column is the one found alone."""
        sessions = Sessions(4096)
        rng = np.random.default_rng(5)
        high, low, ends, local = rng.integers(0, 2**63, (4, 300)).astype(np.uint64)
        keys = sessions.keys(high, low, ends, local)
        alone = [sessions.key(*map(int, row)) for row in zip(high, low, ends, local, strict=True)]
        self.assertEqual(keys.tolist(), alone)
        places = sessions.places(keys, 1)
        self.assertEqual([sessions.place_of(key, 2) for key in alone], places.tolist())
        twice = np.concatenate([places[:5], places[:5]])
        self.assertEqual(sessions.number(twice).tolist(), [0] * 5 + [1] * 5)

    def test_no_session_can_be_made_to_meet_another(self) -> None:
        """Whatever one or two bits of a name differ, the hashes do, with every secret."""
        names = np.array([[0x20010DB800010002], [1], [40000 << 32 | 862 << 16 | 7], [9]], np.uint64)
        bits = np.uint64(1) << np.arange(64, dtype=np.uint64)
        changed = [names]
        for n in range(4):
            for m in range(n, 4):  # each pair of bits, be they of one word or of two
                first, second = (part.reshape(-1) for part in np.meshgrid(bits, bits))
                more = np.repeat(names, len(first), axis=1)
                more[n] ^= first
                more[m] ^= second
                changed.append(more if n < m else more[:, first != second])
        every = np.unique(np.concatenate(changed, axis=1), axis=1)
        for _ in range(5):
            keys = Sessions(64).keys(*every)
            self.assertEqual(len(np.unique(keys)), every.shape[1])

    def test_sessions_made_by_column(self) -> None:
        """A flood of new sessions evicts and counts as single ones do, and spares those it meets."""
        sessions = Sessions(1 << 14)
        rng = np.random.default_rng(7)
        known = sessions.keys(None, *rng.integers(0, 2**63, (3, 40)).astype(np.uint64))
        sessions.number(sessions.places(known, 1))
        made = len(known)
        for turn in range(400):
            strangers = sessions.keys(None, *rng.integers(0, 2**63, (3, 200)).astype(np.uint64))
            keys = rng.permutation(np.concatenate([known, strangers, strangers[:9]]))
            places = sessions.places(keys, 2 + turn)
            self.assertTrue((sessions._flat_keys[places] == keys).all())
            numbers = sessions.number(places)
            self.assertTrue((numbers[np.isin(keys, known)] == turn + 1).all())
            self.assertEqual(
                sorted(numbers[np.isin(keys, strangers)].tolist()), [0] * 200 + [1] * 9
            )
            made += 200
        self.assertEqual(made, len(sessions) + sessions.evicted)
        self.assertGreater(sessions.evicted, 60_000)
        alone = [sessions.place_of(int(key), 500) for key in known]
        self.assertEqual(sessions.sent[alone].tolist(), [401] * 40)

    def test_more_sessions_than_a_batch_has_room_for(self) -> None:
        """No two sessions ever share a counter: what finds no place begins anew with every packet."""
        sessions = Sessions(64)
        rng = np.random.default_rng(8)
        known = sessions.keys(None, *rng.integers(0, 2**63, (3, 8)).astype(np.uint64))
        sessions.number(sessions.places(known, 1))
        for turn in range(1, 50):
            strangers = sessions.keys(None, *rng.integers(0, 2**63, (3, 240)).astype(np.uint64))
            keys = np.concatenate([known, strangers])  # known ones were there before the batch
            places = sessions.places(keys, 1)
            held = sessions._flat_keys[places] == keys
            self.assertEqual(len(set(places[held].tolist())), np.count_nonzero(held))
            self.assertTrue((sessions._flat_keys[places[~held]] == 0).all())
            numbers = sessions.number(places)
            self.assertFalse(numbers[8:].any())
            self.assertEqual(numbers[:8].tolist(), [turn] * 8)
        self.assertEqual(len(sessions), 64)

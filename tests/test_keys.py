"""The key file: what it may hold, who may read it, and which keys fit a session."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llama.keys import Key, KeyFileError, KeyRing, read_keys

MAPPED = 0xFFFF << 32


def v4(a: int, b: int, c: int, d: int) -> tuple[int, int]:
    """Return the halves of an IPv4 address."""
    return 0, MAPPED | a << 24 | b << 16 | c << 8 | d


class KeyFileTests(SynchronousTestCase):
    def write(self, text: str | bytes, mode: int = 0o600) -> str:
        """Write a key file and return its path."""
        path = Path(self.mktemp())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(mode)
        return str(path)

    def assert_refused(self, text: str | bytes, message: str) -> None:
        """Fail unless the file is refused with its path and ``message``."""
        path = self.write(text)
        error = self.assertRaises(KeyFileError, read_keys, path)
        self.assertEqual(f"{path}{message}", str(error))

    def test_every_form_of_secret(self) -> None:
        """Secrets may be given in hexadecimal, base64 or plain text, and are for whom they say."""
        ring = read_keys(self.write(
            "# a comment\n\n"
            "a hex:000102030405060708090a0b0c0d0e0f\n"
            "b base64:MDEyMzQ1Njc4OWFiY2RlZg== prefix=192.0.2.0/24\n"
            "c  text:0123456789abcdeg  ssid=7,8  prefix=2001:db8::/32\n"
        ))  # fmt: skip
        self.assertEqual([bytes(range(16)), b"0123456789abcdef", b"0123456789abcdeg"],
                         [key.secret for key in ring.keys])  # fmt: skip
        self.assertEqual([None, "192.0.2.0/24", "2001:db8::/32"],
                         [key.prefix and str(key.prefix) for key in ring.keys])  # fmt: skip
        self.assertEqual(frozenset((7, 8)), ring.keys[2].ssids)

    def test_mistakes_are_named_with_their_line(self) -> None:
        """Each mistake is one line: where, what, what was expected; no secret is ever quoted."""
        good = "a text:0123456789abcdef"
        for line, message in (
            ("a", "a name alone, expected: NAME SECRET [prefix=CIDR] [ssid=N,N]"),
            ("a 0123456789abcdef",
             "the secret's form is missing, expected hex:, base64: or text:"),
            ("a hex:xyz", "the secret is no hex, expected hex:, base64: or text:"),
            ("a base64:===", "the secret is no base64, expected hex:, base64: or text:"),
            ("a text:short", "the secret has 5 octets, expected at least 16"),
            (f"{good} prefix=10.0.0.1/8",
             "prefix '10.0.0.1/8' is none, expected one like 192.0.2.0/24"),
            (f"{good} ssid=0", "ssid '0', expected numbers from 1 to 65535, like 101,102"),
            (f"{good} ssid=", "ssid '', expected numbers from 1 to 65535, like 101,102"),
            (f"{good} from=me", "'from=me', expected prefix=CIDR or ssid=N,N"),
        ):  # fmt: skip
            self.assert_refused(f"# first\n{line}\n", f":2: {message}")
        self.assert_refused(f"{good}\n{good}\n",
            ":2: the name 'a' is that of line 1 already, expected one of its own")  # fmt: skip
        self.assert_refused("# none\n",
                            ": holds no key, expected at least one line: NAME SECRET")  # fmt: skip
        self.assert_refused(b"\xff\xfe", ": is not UTF-8 text, expected a file of keys")
        self.assert_refused(b"#" * ((1 << 20) + 1),
                            ": has more than 1048576 octets, expected a file of keys")  # fmt: skip

    def test_others_must_not_read_it(self) -> None:
        """A file that others can read or write, or its group write, is refused, and how is said."""
        for mode in (0o604, 0o602, 0o601, 0o620, 0o644, 0o666):
            path = self.write("a text:0123456789abcdef", mode)
            error = self.assertRaises(KeyFileError, read_keys, path)
            self.assertEqual(f"{path}: has mode {mode:04o}, which lets others at the keys;"
                             f" do: chmod 600 {path}", str(error))  # fmt: skip
        for mode in (0o400, 0o600, 0o440, 0o640):
            self.assertEqual(1, len(read_keys(self.write("a text:0123456789abcdef", mode))))

    def test_what_is_no_file_is_refused(self) -> None:
        """A missing file, a directory or a device is one line, not a traceback."""
        missing = self.mktemp()
        error = self.assertRaises(KeyFileError, read_keys, missing)
        self.assertEqual(f"{missing}: cannot be read: No such file or directory", str(error))
        os.makedirs(missing)
        self.assertRaises(KeyFileError, read_keys, missing)
        error = self.assertRaises(KeyFileError, read_keys, "/dev/null")
        self.assertEqual("/dev/null: is no regular file, expected a file of keys", str(error))

    def test_secrets_are_in_no_repr(self) -> None:
        """A key that ends up in a log does not take its secret along."""
        self.assertNotIn("0123", repr(Key("a", b"0123456789abcdef")))


class KeyRingTests(SynchronousTestCase):
    def ring(self, text: str) -> KeyRing:
        """Return the ring of a key file of this text, each secret its name sixteen times."""
        path = Path(self.mktemp())
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (line.split() for line in text.splitlines())
        path.write_text("".join(f"{w[0]} text:{w[0] * 16} {' '.join(w[1:])}\n" for w in lines))
        path.chmod(0o600)
        return read_keys(path)

    def fitting(self, ring: KeyRing, address: tuple[int, int], ssid: int = 0) -> str:
        """Return the one-letter names of the keys that fit, in order."""
        return "".join(secret.decode()[0] for secret in ring.fitting(*address, ssid))

    def test_rotation_is_the_order_of_the_file(self) -> None:
        """Of keys for the same sessions the first is signed with and two are tried."""
        self.assertEqual("ab", self.fitting(self.ring("a\nb\nc"), v4(10, 0, 0, 1)))

    def test_the_closest_fit_comes_first(self) -> None:
        """SSID before prefix, longer prefix before shorter, everyone's last."""
        ring = self.ring("a\nb prefix=10.0.0.0/8\nc prefix=10.1.0.0/16\nd ssid=5\n"
                         "e ssid=5,6 prefix=10.0.0.0/8")  # fmt: skip
        self.assertEqual("cb", self.fitting(ring, v4(10, 1, 2, 3)))
        self.assertEqual("ba", self.fitting(ring, v4(10, 2, 2, 3)))
        self.assertEqual("a", self.fitting(ring, v4(11, 2, 2, 3)))
        self.assertEqual("ed", self.fitting(ring, v4(10, 1, 2, 3), 5))
        self.assertEqual("da", self.fitting(ring, v4(11, 1, 2, 3), 5))
        self.assertEqual("ec", self.fitting(ring, v4(10, 1, 2, 3), 6))

    def test_prefixes_of_one_family_do_not_fit_the_other(self) -> None:
        """An IPv6 prefix fits no IPv4 address, and none fits where no key is for it."""
        ring = self.ring("a prefix=2001:db8::/32\nb prefix=192.0.2.1/32")
        self.assertEqual("a", self.fitting(ring, (0x20010DB8_00000000, 1)))
        self.assertEqual("b", self.fitting(ring, v4(192, 0, 2, 1)))
        self.assertEqual("", self.fitting(ring, v4(192, 0, 2, 2)))

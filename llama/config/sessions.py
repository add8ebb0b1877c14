"""What tells replies apart has 16 bits: tests that need more of them than there are, are refused."""

from __future__ import annotations

from collections import Counter

from llama.config.full import PlacedTest
from llama.config.model import Test
from llama.config.offered_load import port_of, versions
from llama.config.tree import Document

#: Half of what 16 bits hold: a reload needs others while what it replaces is waited for.
MAX_SESSIONS = 32_767
#: What else tells the probes of these apart.
_WITHOUT = ("tcp", "hping3")


def refuse_too_many_sessions(doc: Document, tests: list[PlacedTest]) -> None:
    """Note a mistake for the test with which those of ICMP, or of UDP, have too many sessions."""
    sessions = {True: 0, False: 0}
    for placed in tests:
        test = placed.test
        if test.probe in _WITHOUT:
            continue
        icmp = test.probe == "icmp"
        sessions[icmp] += sessions_of(test)
        if sessions[icmp] > MAX_SESSIONS:
            doc.wrong(
                placed.node,
                f"the {'icmp' if icmp else 'UDP'} tests up to this one have {sessions[icmp]:,} sessions"
                f" (a test's classes times its sizes), expected at most {MAX_SESSIONS:,}; give them"
                " fewer classes or sizes, or leave some of them to another collector",
            )
            return


def sessions_of(test: Test) -> int:
    """Return how many sessions a test has.

    Its targets share them, but those of another IP version, or of the same address and port.
    """
    classes = {dscp for port in test.source_ports for dscp in port.dscps}
    alike = Counter(
        (version, target.host.lower().removesuffix("."), port_of(test, target))
        for target in test.targets
        for version in versions(test, target)
    )
    most: dict[int, int] = {}
    for (version, _, _), count in alike.items():
        most[version] = max(most.get(version, 0), count)
    return sum(most.values()) * len(classes) * max(1, len(test.sizes))

"""The kinds of probe: what each may be told, and how large it is on its way.

The kinds themselves are elsewhere; this file says only what their configuration may hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from llama.config import sections, values
from llama.config.tree import Document, KeySpec, Node, shown
from llama.wire import auth, llama_go, llama_python, stamp, tlv_rules


@frozen(kw_only=True)
class ProbeKind:
    """What a test of one kind of probe may say."""

    natural_size: int  #: octets after the UDP, TCP or ICMP header when no size is asked for
    header: int = 8  #: octets of that header
    #: Octets, without the IP header, of what this host sends besides, of itself, once it is answered.
    after: tuple[int, ...] = ()
    least_size: int | None = None  #: None: its size cannot be chosen
    fragments: bool = True  #: "don't fragment" has a meaning
    ecmp: bool = True  #: routers spread it over equal-cost paths
    families: str = "46"
    binds: bool = True  #: its packets can be bound to a device
    options: Mapping[str, KeySpec] = field(factory=dict)


_STAMP_OPTIONS = {
    "reply_dscp": KeySpec(values.dscp),
    "tlvs": KeySpec(values.flag, True),
}

KINDS: dict[str, ProbeKind] = {
    "stamp": ProbeKind(
        natural_size=stamp.BASE_SIZE + tlv_rules.SIZE,
        least_size=stamp.BASE_SIZE,
        options=_STAMP_OPTIONS,
    ),
    "stamp-auth": ProbeKind(
        natural_size=auth.BASE_SIZE + tlv_rules.SIZE + tlv_rules.HMAC_SIZE,
        least_size=auth.BASE_SIZE,
        options={
            **_STAMP_OPTIONS,
            "key_file": KeySpec(sections.key_file, required=True),
            "key": KeySpec(values.text("the id of a key")),
        },
    ),
    "twamp-light": ProbeKind(natural_size=stamp.BASE_SIZE, least_size=stamp.BASE_SIZE),
    "llama-go": ProbeKind(natural_size=llama_go.NATURAL_SIZE, least_size=llama_go.HEAD_SIZE),
    "llama-python": ProbeKind(natural_size=llama_python.SIZE),
    "icmp": ProbeKind(natural_size=56, least_size=16, ecmp=False),
    "tcp": ProbeKind(
        natural_size=0,
        header=40,  # with the options that Linux puts into a SYN
        after=(32, 32),  # ACK and RST, of an open port
        fragments=False,
        options={"in_flight": KeySpec(values.whole(1, 65536, "connection attempts at once"), 256)},
    ),
    "hping3": ProbeKind(
        natural_size=0,
        header=20,
        after=(20,),  # RST, of an open port
        fragments=False,
        families="4",
        binds=False,
        options={
            "tcp_port": KeySpec(values.whole(0, 65535, "TCP port"), 0),
            "program": KeySpec(values.text("the path of hping3"), "hping3"),
            "processes": KeySpec(values.whole(1, 256, "programs at once"), 8),
            "spacing": KeySpec(values.duration(0.001, 0.999, "ms"), 0.010),
        },
    ),
}


def default_options(probe: str) -> dict[str, Any]:
    """Return the options of a kind of probe about which nothing is said."""
    return {name: spec.default for name, spec in KINDS[probe].options.items()}


def options_of(doc: Document, node: Node, probe: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a test's options as its kind of probe takes them. ``node`` is for complaints."""
    options = {name: given[name] for name in KINDS[probe].options}
    if probe == "stamp-auth":
        keys, wanted = options.pop("key_file"), options["key"]
        options["key"] = None
        for key in keys or ():
            if wanted in (None, key.id):
                options["key"] = key
                break
        if keys and options["key"] is None:
            names = ", ".join(key.id for key in keys)
            doc.wrong(node, f"its key file has no key {shown(wanted)}; it has: {names}")
    return options

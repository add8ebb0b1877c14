r"""What a Clos fabric consists of: nodes, links, addresses, routes; pure, nothing is run here.

Hosts hang on leaves and every leaf on every spine; leaves spread flows over the spines. A
management node, wired to every host outside the fabric, stands for the out-of-band network over
which measurements are read even while the fabric is broken. `llama.lab.namespaces` builds what
this file says.

::

    spine1    spine2    spine3      10.0.S.0/24: leaf L has .2(L-1), spine S the address after it
      | \   /  |  \   /  |
     leaf1 ----+---- leaf2          10.1.L.0/24: leaf has .2(H-1), host H the address after it
      | \              | \
    h1-1 h1-2        h2-1 h2-2      10.2.L.0/24: likewise, for the management node and the host

IPv6 runs beside it in ``fd00::/48`` by the same pattern.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address

from attrs import field, frozen, validators

MANAGEMENT = "mgmt"
#: Sysctls of every node. Limits are explicit, so that no default of the kernel is part of a result.
COMMON_SYSCTLS = {
    "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.default.rp_filter": "0",
    "net.ipv4.icmp_ratelimit": "0",
    "net.ipv4.icmp_msgs_per_sec": "1000000",
    "net.ipv4.icmp_msgs_burst": "10000",
    "net.ipv6.icmp.ratelimit": "0",
    "net.ipv6.conf.all.accept_ra": "0",
    "net.ipv6.conf.all.accept_dad": "0",
    "net.ipv6.conf.default.accept_dad": "0",
    "net.ipv6.conf.all.keep_addr_on_down": "1",
    "net.ipv6.conf.default.keep_addr_on_down": "1",
    # As routing protocols do it: no flow is hashed onto a cable that is visibly down.
    "net.ipv4.conf.all.ignore_routes_with_linkdown": "1",
    "net.ipv4.conf.default.ignore_routes_with_linkdown": "1",
    "net.ipv6.conf.all.ignore_routes_with_linkdown": "1",
    "net.ipv6.conf.default.ignore_routes_with_linkdown": "1",
}


@frozen
class End:
    """One end of a link: an interface of a node, with its addresses (a /31 and a /127)."""

    node: str
    interface: str
    ipv4: IPv4Address
    ipv6: IPv6Address


@frozen
class Link:
    """A cable between two nodes."""

    a: End
    b: End

    @property
    def nodes(self) -> tuple[str, str]:
        """The names of the two nodes."""
        return (self.a.node, self.b.node)


@frozen
class Direction:
    """One direction of a link, the unit that a fault breaks and a suspect names."""

    sender: End
    receiver: End

    def __str__(self) -> str:
        """Return it as people write it: ``spine3 -> leaf2``."""
        return f"{self.sender.node} -> {self.receiver.node}"


def _cable(a: str, b: str, net: int, third: int, pair: int) -> Link:
    """Return the link of nodes a and b, numbered as pair `pair` of 10.NET.THIRD.0/24."""
    v4 = IPv4Address(f"10.{net}.{third}.0") + 2 * pair
    v6 = IPv6Address(f"fd00:0:0:{net:x}{third:02x}::") + 2 * pair
    return Link(End(a, f"to-{b}", v4, v6), End(b, f"to-{a}", v4 + 1, v6 + 1))


_COUNT = validators.and_(validators.instance_of(int), validators.ge(1), validators.le(99))


@frozen
class Fabric:
    """A Clos fabric of `leaves` x `spines` with `hosts_per_leaf` hosts on every leaf.

    Raises `ValueError` for sizes that the addresses above cannot number. `seed` chooses every
    router's ECMP hash seed, so a fabric of the same size and seed puts every flow on the same path.
    """

    leaves: int = field(default=3, validator=_COUNT)
    spines: int = field(default=4, validator=_COUNT)
    hosts_per_leaf: int = field(default=2, validator=_COUNT)
    mtu: int = field(default=1500, validator=[validators.ge(1280), validators.le(65535)])
    seed: int = 1

    @cached_property
    def leaf_names(self) -> tuple[str, ...]:
        """``leaf1``, ``leaf2``, ..."""
        return tuple(f"leaf{n + 1}" for n in range(self.leaves))

    @cached_property
    def spine_names(self) -> tuple[str, ...]:
        """``spine1``, ``spine2``, ..."""
        return tuple(f"spine{n + 1}" for n in range(self.spines))

    @cached_property
    def hosts(self) -> dict[str, str]:
        """Host name -> name of its leaf; host H of leaf L is called ``hL-H``."""
        return {
            f"h{leaf + 1}-{host + 1}": self.leaf_names[leaf]
            for leaf in range(self.leaves)
            for host in range(self.hosts_per_leaf)
        }

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """Every node, the management node last."""
        return (*self.spine_names, *self.leaf_names, *self.hosts, MANAGEMENT)

    @cached_property
    def links(self) -> tuple[Link, ...]:
        """The cables of the fabric itself: leaf-spine, then leaf-host."""
        up = [
            _cable(leaf, spine, 0, s + 1, n)
            for n, leaf in enumerate(self.leaf_names)
            for s, spine in enumerate(self.spine_names)
        ]
        return (*up, *self._host_cables(1, None))

    @cached_property
    def management_links(self) -> tuple[Link, ...]:
        """The cables between the management node and every host."""
        return tuple(self._host_cables(2, MANAGEMENT))

    def _host_cables(self, net: int, other: str | None) -> Iterator[Link]:
        """Yield the cables of every host to its leaf, or to `other`."""
        for n, (host, leaf) in enumerate(self.hosts.items()):
            leaf_number, pair = divmod(n, self.hosts_per_leaf)
            yield _cable(other or leaf, host, net, leaf_number + 1, pair)

    @cached_property
    def directions(self) -> dict[tuple[str, str], Direction]:
        """(sender, receiver) -> that direction of their link, for every link of the fabric."""
        found: dict[tuple[str, str], Direction] = {}
        for link in self.links:
            found[link.a.node, link.b.node] = Direction(link.a, link.b)
            found[link.b.node, link.a.node] = Direction(link.b, link.a)
        return found

    def direction(self, text: str) -> Direction:
        """Return the direction written ``A -> B``; `ValueError` says which neighbours A has."""
        sender, arrow, receiver = (part.strip() for part in text.partition("->"))
        if not arrow or sender not in self.nodes:
            raise ValueError(f"{text!r} is no link: write it like 'leaf1 -> spine2'")
        try:
            return self.directions[sender, receiver]
        except KeyError:
            near = ", ".join(b for a, b in self.directions if a == sender)
            raise ValueError(f"{text!r} is no link: {sender} is linked to {near}") from None

    def ends(self, node: str) -> list[tuple[End, End]]:
        """Return (own end, far end) of every cable of `node`, management included."""
        found = []
        for link in (*self.links, *self.management_links):
            if link.a.node == node:
                found.append((link.a, link.b))
            elif link.b.node == node:
                found.append((link.b, link.a))
        return found

    def address(self, host: str) -> IPv4Address:
        """Return the address under which a host is probed."""
        return self._host_end(host, self.links).ipv4

    def ipv6_address(self, host: str) -> IPv6Address:
        """Return the IPv6 address under which a host is probed."""
        return self._host_end(host, self.links).ipv6

    def management_address(self, host: str) -> IPv4Address:
        """Return the address under which the management node reads a host's measurements."""
        return self._host_end(host, self.management_links).ipv4

    @staticmethod
    def _host_end(host: str, links: tuple[Link, ...]) -> End:
        """Return the host's end of its only cable among `links`; `ValueError` when no host."""
        for link in links:
            if link.b.node == host:
                return link.b
        raise ValueError(f"{host!r} is no host of this fabric")

    def routes(self, node: str) -> list[str]:
        """Return arguments of ``ip route replace``, both families, for what is not on a cable."""
        far = {other.node: other for _, other in self.ends(node)}
        if node in self.hosts:
            leaf = far[self.hosts[node]]
            return [f"default via {leaf.ipv4}", f"default via {leaf.ipv6}"]
        found = []
        for n, leaf_name in enumerate(self.leaf_names, 1):
            prefixes = (f"10.1.{n}.0/24", f"fd00:0:0:1{n:02x}::/64")
            if node in self.spine_names:
                via = [far[leaf_name]]
            elif node in self.leaf_names and node != leaf_name:
                via = [far[spine] for spine in self.spine_names]
            else:
                continue
            found.append(prefixes[0] + "".join(f" nexthop via {end.ipv4}" for end in via))
            found.append(prefixes[1] + "".join(f" nexthop via {end.ipv6}" for end in via))
        return found

    def sysctls(self, node: str) -> dict[str, str]:
        """Return the kernel settings of a node."""
        settings = dict(COMMON_SYSCTLS)
        if node in self.leaf_names or node in self.spine_names:
            # A seed is 32 bits and 0 means "random": each router hashes in its own way.
            own = random.Random(f"{self.seed} {node}").randrange(1, 2**32)
            settings |= {
                "net.ipv4.ip_forward": "1",
                "net.ipv6.conf.all.forwarding": "1",
                "net.ipv4.fib_multipath_hash_policy": "1",
                "net.ipv6.fib_multipath_hash_policy": "1",
                "net.ipv4.fib_multipath_hash_seed": str(own),
                # Errors come from the interface a packet came in by, as routers do it: the
                # address then names the very link.
                "net.ipv4.icmp_errors_use_inbound_ifaddr": "1",
            }
        return settings

    def names(self) -> dict[str, str]:
        """Return every address of the fabric -> node name: what reverse DNS would say."""
        found: dict[str, str] = {}
        for link in self.links:
            for end in (link.a, link.b):
                found[str(end.ipv4)] = found[str(end.ipv6)] = end.node
        return found

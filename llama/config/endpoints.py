"""Where to serve HTTP: ADDRESS:PORT, or a Twisted server endpoint, which is tried before it is taken.

Nothing is bound here. What an endpoint of a plugin's may say only the plugin knows, when it starts.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from llama.config.keys import said_if_open
from llama.config.tree import Document, Node, WrongError, shown, unknown
from llama.config.urls import NO_TLS
from llama.config.values import text

#: The parameters of Twisted's own endpoints, in order.
_PARAMETERS = {
    "tcp": ("port", "interface", "backlog"),
    "tcp6": ("port", "interface", "backlog"),
    "ssl": (
        "port", "privateKey", "certKey", "sslmethod", "interface", "backlog", "extraCertChain",
        "dhParameters",
    ),
    "unix": ("address", "mode", "backlog", "lockfile"),
}  # fmt: skip
#: Which of them are paths.
_PATHS = ("privateKey", "certKey", "extraCertChain", "dhParameters", "address")
#: How other endpoint strings begin, of the kinds that make sense here.
_OTHERS = ("tls", "systemd", "haproxy")
_KINDS = (*_PARAMETERS, *_OTHERS)
#: Parameters of ``unix:``, but its path.
_NO_PATH = re.compile(r"(mode|backlog|lockfile)=")
#: A parameter of an endpoint string: a colon in it has a backslash before it.
_PARAMETER = re.compile(r"((?:[^:\\]|\\.)*)(?::|$)")


def endpoint(bind: str) -> str:
    """Return the Twisted server endpoint for ``HOST:PORT``, ``:PORT`` (all of IPv4) or ``PORT``.

    A text that is an endpoint already (``ssl:5000:privateKey=...``) is returned as it is. A bare
    port is served on localhost. HOST is an address, since a name may stand for several. Raises
    `ValueError`, with a message for people, for anything else.
    """
    bind = bind.strip()
    kind, _, rest = bind.partition(":")
    if kind in _KINDS and bind != kind:
        port = re.match(r"(?:port=)?([0-9]{1,5})(?::|$)", rest)
        if "port" in _PARAMETERS.get(kind, ()) and (not port or int(port[1]) > 65535):
            raise ValueError(f"{shown(bind)} is no endpoint: a port number follows {kind}:")
        return bind
    host_text, colon, port_text = bind.rpartition(":")
    if not port_text.isascii() or not port_text.isdigit() or int(port_text[:6]) > 65535:
        raise ValueError(
            f"{shown(bind)} is no place to listen, expected ADDRESS:PORT or a Twisted endpoint"
            " such as ssl:5000:privateKey=key.pem:certKey=cert.pem"
        )
    number = int(port_text)
    if not colon:
        return f"tcp:{number}:interface=127.0.0.1"
    if not host_text:
        return f"tcp:{number}"
    if host_text == "localhost":
        host_text = "127.0.0.1"
    try:
        ip = ipaddress.ip_address(host_text.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise ValueError(
            f"{shown(host_text)} is no IP address to listen on, expected ADDRESS:PORT"
        ) from None
    if ip.version == 4:
        return f"tcp:{number}:interface={ip}"
    return f"tcp6:{number}:interface=" + str(ip).replace(":", "\\:")


def _unescaped(parameter: str) -> str:
    return re.sub(r"\\(.)", r"\1", parameter)


def socket_file(where: str) -> str | None:
    """Return the path of a ``unix:`` endpoint's socket; None for other endpoints."""
    kind, *parameters = _PARAMETER.findall(where.strip())
    if kind != "unix":
        return None
    written = [each for each in parameters if not _NO_PATH.match(each)]
    return _unescaped(written[0].removeprefix("address="))


def certificate_files(where: str) -> tuple[str, ...]:
    """Return the paths of the files that an ``ssl:`` endpoint names; none for other endpoints."""
    kind, *parameters = _PARAMETER.findall(where.strip())[:-1]  # there is an empty match at the end
    if kind != "ssl":
        return ()
    files = []
    for by_place, parameter in zip(_PARAMETERS[kind], parameters, strict=False):
        name, equals, value = parameter.partition("=")
        if (name if equals else by_place) in _PATHS:
            files.append(_unescaped(value if equals else parameter))
    return tuple(files)


def listen(doc: Document, node: Node) -> str:
    """Read where to serve HTTP, as a Twisted server endpoint; paths in it as of any other key."""
    written = text("ADDRESS:PORT")(doc, node)
    try:
        where = endpoint(written)
    except ValueError as error:
        raise WrongError(node, str(error)) from None
    if where != written.strip():  # ADDRESS:PORT, which is right
        return where
    kind, *parameters = _PARAMETER.findall(where)[:-1]  # there is an empty match at the end
    if kind in _PARAMETERS:
        where = ":".join([kind, *_near(doc, node, kind, parameters)])
        _try(doc, node, where, written)
    elif kind not in _installed():
        raise WrongError(node, f"{shown(where)} takes a package with endpoints of type {kind}")
    return where


def _installed() -> set[str]:
    """Return the types of endpoints that plugins of Twisted's offer."""
    from twisted.internet.interfaces import IStreamServerEndpointStringParser
    from twisted.plugin import getPlugins

    return {plugin.prefix for plugin in getPlugins(IStreamServerEndpointStringParser)}


def _near(doc: Document, node: Node, kind: str, parameters: list[str]) -> list[str]:
    """Return the parameters with paths where they lead. Raises `WrongError` for what cannot be."""
    from twisted.internet.endpoints import quoteStringArgument

    names = _PARAMETERS[kind]
    given: dict[str, str] = {}
    whole: list[str] = []
    for place, parameter in enumerate(parameters):
        name, equals, value = parameter.partition("=")
        if not equals:
            if place >= len(names):
                raise WrongError(
                    node, f"{kind}: has too many parameters, expected {', '.join(names)}"
                )
            name, value = names[place], parameter
        if name not in names:
            raise WrongError(node, unknown("parameter", name, names, f" of {kind}:"))
        given[name] = _unescaped(value)
        if name in _PATHS:
            path = str(doc.near(node, given[name]))
            parameter = f"{name}={quoteStringArgument(path)}"
            if name == "privateKey" and (said := said_if_open(path)):
                doc.note(node, said)
        whole.append(parameter)
    if kind == "ssl" and "privateKey" not in given:
        raise WrongError(node, "ssl: has no privateKey, expected privateKey=FILE and certKey=FILE")
    if interface := given.get("interface"):
        version = 6 if kind == "tcp6" else 4
        try:
            right = ipaddress.ip_address(interface).version == version
        except ValueError:
            right = False
        if not right:
            raise WrongError(node, f"{shown(interface)} is not an IPv{version} address for {kind}:")
    return whole


def _try(doc: Document, node: Node, where: str, written: str) -> None:
    """Let Twisted read an endpoint string, and the files that it names; bind nothing."""
    from twisted.internet.endpoints import serverFromString

    nowhere: Any = object()  # a reactor, which is not asked for anything yet
    try:
        serverFromString(nowhere, where)
    except PermissionError as error:
        # Whoever starts the service may read it before it drops its privileges.
        doc.note(node, f"{error.filename} cannot be read by this user, so it was not looked at")
    except OSError as error:
        raise WrongError(node, f"{error.filename} cannot be read: {error.strerror}") from None
    except ImportError as error:
        problem = NO_TLS if written.startswith("ssl:") else str(error)
        raise WrongError(node, f"{shown(written)} takes a package: {problem}") from None
    except (ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise WrongError(node, f"{shown(written)} is no endpoint: {reason}") from None
    except Exception:  # OpenSSL's, which say nothing to people
        raise WrongError(
            node, f"{shown(written)} names files without a key and a certificate in PEM"
        ) from None

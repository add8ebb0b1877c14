"""``twistd llama-reflector``."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.application.service import MultiService
from twisted.python import usage

from llama.config import ConfigErrors, ReflectorConfig, load_reflector
from llama.reflector.service import ReflectorService


class Options(usage.Options):
    """Options of the service; what they say wins over the file."""

    synopsis = "[options]"
    longdesc = "Answers STAMP (RFC 8762) and earlier LLAMA probes. Needs no configuration."
    optParameters = [
        ["config", "c", None, "configuration file (see etc/reflector.yaml)"],
        ["port", "p", None, "UDP port to answer on [default: 8100]", int],
        ["interface", "i", None, "address to answer on [default: all, IPv4 and IPv6]"],
        ["api", None, None, "where /status and /metrics are served [default: 127.0.0.1:5002]"],
    ]

    def postOptions(self) -> None:
        """Read the configuration, so that a mistake ends the program before it starts."""
        config = ReflectorConfig()
        if self["config"] is not None:
            try:
                config = load_reflector(self["config"])
            except ConfigErrors as errors:
                raise usage.UsageError(str(errors)) from None
        changes: dict[str, Any] = {}
        if self["port"] is not None:
            if not 0 <= self["port"] <= 65535:
                raise usage.UsageError(f"--port: {self['port']} is no port, expected 0-65535")
            changes["port"] = self["port"]
        if self["interface"] is not None:
            changes["addresses"] = (self["interface"],)
        if self["api"] is not None:
            changes["api"] = self["api"]
        self.reflector = attrs.evolve(config, **changes)


def makeService(options: Options) -> MultiService:
    """Return the service that ``options`` describe."""
    from twisted.internet import reactor

    return ReflectorService(reactor, options.reflector)

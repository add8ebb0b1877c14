"""``twistd llama-reflector``."""

from __future__ import annotations

import os
from typing import Any

import attrs
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.python import usage

from llama import hangup
from llama.config import ConfigErrors, ReflectorConfig, load_reflector
from llama.net.reactor import prepare
from llama.process import end_with_1
from llama.reflector import privilege
from llama.reflector.service import ReflectorService


class Options(usage.Options):
    """Options of the service; what they say wins over the file."""

    synopsis = "[options]"
    longdesc = (
        "Answers STAMP (RFC 8762) and earlier LLAMA probes. Needs no configuration. SIGHUP reloads."
    )
    optParameters = [
        ["config", "c", None, "configuration file (see etc/reflector.yaml)"],
        ["port", "p", None, "UDP port to answer on [default: 8100]"],
        ["interface", "i", None, "address to answer on [default: all, IPv4 and IPv6]"],
        ["api", None, None, "where its own figures are served [default: 127.0.0.1:5002]"],
    ]

    def postOptions(self) -> None:
        """Read the configuration, so that a mistake ends the program here, with its message alone."""
        config = ReflectorConfig()
        if self["config"] is not None:
            try:
                config = load_reflector(self["config"])
            except ConfigErrors as errors:
                raise SystemExit(str(errors)) from None
        changes: dict[str, Any] = {}
        if self["port"] is not None:
            port = str(self["port"])
            if not (port.isascii() and port.isdigit() and int(port) <= 65535):
                raise SystemExit(f"--port: {port!r} is no port, expected 0-65535")
            changes["port"] = int(port)
        if self["interface"] is not None:
            changes["addresses"] = (self["interface"],)
        if self["api"] is not None:
            changes["api"] = self["api"]
        self.changes = changes
        self.loaded = attrs.evolve(config, **changes)


class _Daemon(ReflectorService):
    """A reflector that gives up root's powers, and reloads; ``changes`` win over the file."""

    def __init__(self, reactor: Any, config: ReflectorConfig, changes: dict[str, Any]) -> None:
        super().__init__(reactor, config)
        self._path = config.path
        self._changes = changes
        self._low_port = False

    def privilegedStartService(self) -> None:
        """Bind, and keep for later what binding such a port again takes."""
        super().privilegedStartService()
        self._low_port = privilege.is_privileged(self.ports.port_number)
        if self._low_port and os.geteuid() == 0:
            privilege.keep_for_change_of_user()

    def startService(self) -> None:
        """Start with no more power than it takes: all that is to be bound is bound by now."""
        privilege.shed(keep_binding=self._low_port)
        super().startService()
        if os.geteuid() == 0:
            self.log.warn("runs as root and need not: start it with twistd --uid USER --gid GROUP")
        elif privilege.may_be_root_again():
            self.log.warn(
                "can become root again, since --euid changes the effective user alone: start it"
                " without --euid"
            )

    async def use(self, config: ReflectorConfig) -> None:
        """Go on with another configuration, and without the power to bind a low port once left."""
        await super().use(config)
        if self._low_port and self.running and not privilege.is_privileged(self.ports.port_number):
            self._low_port = False
            privilege.shed(keep_binding=False)

    def failed(self) -> None:
        """End the program with status 1, for whoever supervises it to start it anew."""
        end_with_1()
        super().failed()

    def reload(self) -> None:
        """Read the configuration file again; a bad one changes nothing."""
        if not self._path:
            self.log.warn("not reloaded: started without --config")
            return
        try:
            config = load_reflector(self._path, again=True)
        except ConfigErrors as errors:
            for mistake in errors.mistakes:
                self.log.error("not reloaded: {mistake}", mistake=str(mistake))
            return
        done = Deferred.fromCoroutine(self.use(attrs.evolve(config, **self._changes)))
        done.addErrback(
            lambda failure: self.log.failure(
                "not reloaded: a fault in the reflector itself", failure
            )
        )


def makeService(options: Options) -> MultiService:
    """Return the service that ``options`` describe."""
    from twisted.internet import reactor

    prepare(reactor)
    reflector = _Daemon(reactor, options.loaded, options.changes)
    hangup.OnHangup(reactor, reflector.reload).setServiceParent(reflector)
    return reflector

"""``twistd llama-collector``."""

from __future__ import annotations

from typing import Any

import attrs
from twisted.application.service import MultiService
from twisted.python import usage

from llama import hangup
from llama.collector.service import CollectorService
from llama.config import ConfigErrors, endpoint, load_collector
from llama.net.reactor import prepare
from llama.process import end_with_1


class Options(usage.Options):
    """Options of the service; what they say wins over the file."""

    synopsis = "--config FILE [options]"
    longdesc = "Probes what the configuration names and serves what it measured. SIGHUP reloads."
    optParameters = [
        ["config", "c", None, "configuration file (see etc/collector.yaml)"],
        ["api", None, None, "where HTTP is served: HOST:PORT or a Twisted endpoint string"],
    ]

    def postOptions(self) -> None:
        """Read the configuration, so that a mistake ends the program here, with its message alone."""
        if self["config"] is None:
            raise usage.UsageError("--config FILE is needed; see etc/collector.yaml")
        try:
            config = load_collector(self["config"])
        except ConfigErrors as errors:
            raise SystemExit(str(errors)) from None
        self.changes: dict[str, Any] = {}
        if self["api"] is not None:
            try:
                endpoint(self["api"])
            except ValueError as error:
                raise SystemExit(f"--api: {error}") from None
            self.changes["api"] = self["api"]
        self.loaded = attrs.evolve(config, **self.changes)


def makeService(options: Options) -> MultiService:
    """Return the service that ``options`` describe."""
    from twisted.internet import reactor

    prepare(reactor)
    collector = CollectorService(reactor, options.loaded, options.changes)
    collector.probing.failing = end_with_1  # for whoever supervises it to start it anew
    hangup.OnHangup(reactor, collector.probing.reload).setServiceParent(collector)
    return collector

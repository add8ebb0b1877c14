"""``twistd llama-web``: the matrix in the browser."""

from __future__ import annotations

from twisted.application.service import MultiService
from twisted.python import usage

from llama import hangup
from llama.config import ConfigErrors, load_web
from llama.net.reactor import prepare
from llama.web.service import WebService
from llama.web.store import StoreError


class Options(usage.Options):
    """Options of ``twistd llama-web``."""

    synopsis = "[options]"
    longdesc = "Serves the loss and latency matrix from a time-series database."
    optParameters = [["config", "c", None, "configuration file (YAML), see etc/web.yaml"]]

    def postOptions(self) -> None:
        """Read the configuration; a mistake ends it here, with nothing but its message."""
        if not self["config"]:
            raise usage.UsageError("--config FILE is required; etc/web.yaml is an example")
        try:
            self.loaded = load_web(self["config"])
        except ConfigErrors as errors:
            raise SystemExit(str(errors)) from None


def makeService(options: Options) -> MultiService:
    """Return the service that ``options`` describe."""
    from twisted.internet import reactor

    prepare(reactor)
    try:
        web = WebService(reactor, options.loaded)
    except StoreError as error:
        raise SystemExit(f"llama-web: {error}") from None

    def say() -> None:
        path = web.config.path
        web.log.warn("not reloaded: {path} is read when llama-web starts; restart it", path=path)

    hangup.OnHangup(reactor, say).setServiceParent(web)
    return web

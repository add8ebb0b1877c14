"""``twistd llama-web``: the matrix in the browser."""

from __future__ import annotations

from typing import Any

from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError

from llama import config, hangup
from llama.net.reactor import prepare
from llama.web.service import WebService
from llama.web.store import StoreError


class Options(UsageOptions):
    """Options of ``twistd llama-web``."""

    synopsis = "[options]"
    longdesc = "Serves the loss and latency matrix from a time-series database."
    optParameters = [["config", "c", None, "configuration file (YAML), see etc/web.yaml"]]

    def postOptions(self) -> None:
        """Read the configuration; a mistake ends it here, with nothing but its message."""
        if not self["config"]:
            raise UsageError("--config FILE is required; etc/web.yaml is an example")
        try:
            self["loaded"] = config.load_web(self["config"])
        except config.ConfigErrors as error:
            raise SystemExit(str(error)) from None


class _Signalled(WebService):
    """A page that SIGHUP does not end: it says that only a restart reads the file again."""

    def __init__(self, reactor: Any, loaded: config.WebConfig) -> None:
        super().__init__(reactor, loaded)
        self._reactor = reactor

    def startService(self) -> None:
        """Start, and answer the signal."""
        super().startService()
        hangup.obey(self._reactor, self._hung_up)

    def stopService(self) -> Any:
        """Stop; a signal during that is ignored."""
        hangup.ignore()
        return super().stopService()

    def _hung_up(self) -> None:
        self.log.warn(
            "not reloaded: {path} is read when llama-web starts; restart it", path=self.config.path
        )


def makeService(options: Options) -> WebService:
    """Return the service that ``options`` describe."""
    from twisted.internet import reactor

    prepare(reactor)
    try:
        return _Signalled(reactor, options["loaded"])
    except StoreError as error:
        raise SystemExit(f"llama-web: {error}") from None

"""``twistd llama-web``: the matrix in the browser."""

from __future__ import annotations

from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError

from llama import config

from .service import WebService
from .store import StoreError


class Options(UsageOptions):
    """Options of ``twistd llama-web``."""

    synopsis = "[options]"
    longdesc = "Serves the loss and latency matrix from a time-series database."
    optParameters = [["config", "c", None, "configuration file (YAML), see etc/web.yaml"]]

    def postOptions(self) -> None:
        """Read the configuration; a mistake ends it here."""
        if not self["config"]:
            raise UsageError("--config FILE is required; etc/web.yaml is an example")
        try:
            self["loaded"] = config.load_web(self["config"])
        except config.ConfigErrors as error:
            raise UsageError(str(error)) from None


def makeService(options: Options) -> WebService:
    """Return the service that ``options`` describe."""
    from twisted.internet import reactor

    try:
        return WebService(reactor, options["loaded"])
    except StoreError as error:
        raise SystemExit(f"llama-web: {error}") from None

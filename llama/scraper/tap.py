"""``twistd llama-scraper``: reads its options and configuration and makes the service."""

from __future__ import annotations

from typing import Any

from twisted.application.service import MultiService
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.usage import Options as UsageOptions
from twisted.python.usage import UsageError

from llama import config, hangup
from llama.net.reactor import prepare
from llama.process import end_with_1, raise_open_files
from llama.scraper.service import ScraperService
from llama.scraper.spool_file import ForeignFileError
from llama.scraper.writers import WriterConfigError, makers


class Options(UsageOptions):
    """Options of ``twistd llama-scraper``."""

    synopsis = "[options]"
    optParameters = [["config", "c", None, "configuration file (YAML), see etc/scraper.yaml"]]

    @property
    def longdesc(self) -> str:
        """Return the help text, with the databases that can be written to."""
        kinds = ", ".join(f"{kind} ({m.description})" for kind, m in sorted(makers().items()))
        return f"Moves measurements from collectors into time-series databases: {kinds}."

    def postOptions(self) -> None:
        """Read the configuration; a mistake ends it here, with nothing but its message."""
        if not self["config"]:
            raise UsageError("--config FILE is required; etc/scraper.yaml is an example")
        try:
            self["loaded"] = config.load_scraper(self["config"])
        except config.ConfigErrors as error:
            raise SystemExit(str(error)) from None


class _Reloading(MultiService):
    """The scraper, reading its configuration again on SIGHUP."""

    _log = Logger()

    def __init__(self, reactor: Any, scraper: ScraperService, path: str) -> None:
        super().__init__()
        self._reactor = reactor
        self._scraper = scraper
        self._path = path
        scraper.setServiceParent(self)

    def startService(self) -> None:
        """Start, and listen for the signal."""
        super().startService()
        hangup.obey(self._reactor, self._reload)

    def stopService(self) -> Any:
        """Stop; a signal during that is ignored."""
        hangup.ignore()
        return super().stopService()

    def _reload(self) -> None:
        try:
            loaded = config.load_scraper(self._path, again=True)
        except config.ConfigErrors as error:
            self._refuse(str(error))
            return
        self._scraper.reload(loaded).addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        if failure.check(WriterConfigError):
            self._refuse(str(failure.value))
        else:
            self._log.failure("Reading {path} again failed", failure, path=self._path)

    def _refuse(self, problem: str) -> None:
        for line in problem.splitlines():
            self._log.error("Not reloaded, nothing changes: {line}", line=line)


def makeService(options: Options) -> MultiService:
    """Make the service; what is wrong with a writer or the spool ends the program with its message."""
    from twisted.internet import reactor

    prepare(reactor)
    raise_open_files()  # a connection to each of a thousand collectors
    try:
        scraper = ScraperService(reactor, options["loaded"])
    except (WriterConfigError, ForeignFileError) as error:
        # Not a UsageError: twistd shows that one as a traceback once options are parsed.
        raise SystemExit(str(error)) from None
    scraper.failing = end_with_1  # for whoever supervises it to start it anew
    return _Reloading(reactor, scraper, options["config"])

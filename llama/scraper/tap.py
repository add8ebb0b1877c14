"""``twistd llama-scraper``: reads its options and configuration and makes the service."""

from __future__ import annotations

from twisted.application.service import MultiService
from twisted.python import usage
from twisted.python.failure import Failure

from llama import hangup
from llama.config import ConfigErrors, load_scraper
from llama.net.reactor import prepare
from llama.process import end_with_1, raise_open_files
from llama.scraper.service import ScraperService
from llama.scraper.spool_file import ForeignFileError
from llama.scraper.writers import WriterConfigError, makers


class Options(usage.Options):
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
            raise usage.UsageError("--config FILE is required; etc/scraper.yaml is an example")
        try:
            self.loaded = load_scraper(self["config"])
        except ConfigErrors as errors:
            raise SystemExit(str(errors)) from None


class _Daemon(ScraperService):
    """A scraper that can read its configuration file again."""

    def reread(self) -> None:
        """Read the file and go on with what it says; a bad one changes nothing."""
        try:
            config = load_scraper(self.config.path, again=True)
        except ConfigErrors as errors:
            self._refuse(str(errors))
            return
        self.reload(config).addErrback(self._not_reloaded)

    def _not_reloaded(self, failure: Failure) -> None:
        if failure.check(WriterConfigError):
            self._refuse(str(failure.value))
        else:
            self._log.failure("not reloaded: a fault in the scraper itself", failure)

    def _refuse(self, mistakes: str) -> None:
        for mistake in mistakes.splitlines():
            self._log.error("not reloaded: {mistake}", mistake=mistake)


def makeService(options: Options) -> MultiService:
    """Make the service; what is wrong with a writer or the spool ends the program with its message."""
    from twisted.internet import reactor

    prepare(reactor)
    raise_open_files()  # a connection to each of a thousand collectors
    try:
        scraper = _Daemon(reactor, options.loaded)
    except (WriterConfigError, ForeignFileError) as error:
        # Not a UsageError: twistd shows that one as a traceback once options are parsed.
        raise SystemExit(str(error)) from None
    scraper.failing = end_with_1  # for whoever supervises it to start it anew
    hangup.OnHangup(reactor, scraper.reread).setServiceParent(scraper)
    return scraper

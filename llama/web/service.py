"""`WebService`: the page and its API over one store, as a Twisted service."""

from __future__ import annotations

from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.logger import Logger

from llama.config import WebConfig
from llama.http.server import HttpService
from llama.web.answers import Answers
from llama.web.api import WebApi
from llama.web.flows import CollectorFlows, FlowSource
from llama.web.incidents import IncidentSource, NoIncidents
from llama.web.remote_incidents import RemoteIncidents
from llama.web.store import Store
from llama.web.stores import open_store


class WebService(MultiService):
    """Serves the matrix. Raises `StoreError` if the store's options make no sense.

    ``store``, ``flows`` and ``incidents`` replace what the configuration says, for programs that
    have their own.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        config: WebConfig,
        *,
        store: Store | None = None,
        flows: FlowSource | None = None,
        incidents: IncidentSource | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.store = store if store is not None else open_store(reactor, config.store)
        self.flows: FlowSource = flows or CollectorFlows(
            reactor, config.collectors, token=config.collector_token, ca_file=config.ca_file
        )
        if incidents is None:
            incidents = (
                RemoteIncidents(
                    reactor, config.pinpoint, token=config.collector_token, ca_file=config.ca_file
                )
                if config.pinpoint
                else NoIncidents()
            )
        self.incidents = incidents
        answers = Answers(reactor, self.store, config.remember_s, frozenset(config.forget))
        api = WebApi(answers, self.flows, incidents)
        self.http = HttpService(
            reactor, config.listen, api.resource(), what="llama-web", token=config.api_token
        )
        self.http.setServiceParent(self)

    @property
    def url(self) -> str:
        """Where the page is; the service must be running."""
        return self.http.url

    def startService(self) -> None:
        """Serve, and say what is suspicious about the configuration."""
        super().startService()
        for note in self.config.notes:
            self.log.warn("{note}", note=str(note))

    def stopService(self) -> Deferred[Any]:
        """Stop serving, then let go of the store and of all that is asked besides."""
        stopped = maybeDeferred(super().stopService)
        asked = self.store, self.flows, self.incidents
        stopped.addCallback(lambda _: gatherResults([maybeDeferred(one.stop) for one in asked]))
        return stopped

"""The databases that the matrix can be drawn from, by the ``type`` of the ``store`` section."""

from __future__ import annotations

from typing import Any

from llama.config import StoreConfig
from llama.web.store import Store, StoreError
from llama.web.stores.influxdb import InfluxDBStore
from llama.web.stores.prometheus import PrometheusStore
from llama.web.stores.sqlite import SQLiteStore


def open_store(reactor: Any, config: StoreConfig) -> Store:
    """Return the store that ``config`` names; raises `StoreError` if its options make no sense.

    Nothing is asked yet: a database that is away is complained about by the first answer.
    """
    options = dict(config.options)
    if config.type == "sqlite":
        return SQLiteStore(reactor, path=str(options["path"]))
    if config.type == "influxdb":
        return InfluxDBStore(reactor, **options)
    if config.type == "prometheus":
        return PrometheusStore(reactor, **options)
    raise StoreError(
        f"store type {config.type!r} is not known, expected sqlite, influxdb or prometheus"
    )

"""YAML files into frozen attrs classes: the only reader of configuration.

Each service has a loader. A file with mistakes is refused whole, with `ConfigErrors`, before
anything starts.
"""

from .collector import load_collector
from .detect import SERVICES, AnyConfig, load
from .dscp import DSCP_OF_CLASS, class_name, dscp_number
from .endpoints import endpoint
from .frozen import FrozenMapping
from .mistakes import ConfigErrors, Mistake
from .model import (
    PROBES,
    CollectorConfig,
    Family,
    Key,
    Prefix,
    ReflectorConfig,
    ReflectorKey,
    ReflectorSession,
    ScraperConfig,
    SourcePort,
    SpoolConfig,
    StoreConfig,
    Target,
    Test,
    WebConfig,
    WriterConfig,
)
from .reflector import load_reflector
from .scraper import load_scraper
from .web import load_web

__all__ = [
    "DSCP_OF_CLASS",
    "PROBES",
    "SERVICES",
    "AnyConfig",
    "CollectorConfig",
    "ConfigErrors",
    "Family",
    "FrozenMapping",
    "Key",
    "Mistake",
    "Prefix",
    "ReflectorConfig",
    "ReflectorKey",
    "ReflectorSession",
    "ScraperConfig",
    "SourcePort",
    "SpoolConfig",
    "StoreConfig",
    "Target",
    "Test",
    "WebConfig",
    "WriterConfig",
    "class_name",
    "dscp_number",
    "endpoint",
    "load",
    "load_collector",
    "load_reflector",
    "load_scraper",
    "load_web",
]

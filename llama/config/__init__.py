"""YAML files into frozen attrs classes: the only reader of configuration.

Each service has a loader. A file with mistakes is refused whole, with `ConfigErrors`, before
anything starts.
"""

from llama.config.collector import load_collector
from llama.config.detect import SERVICES, AnyConfig, load
from llama.config.dscp import DSCP_OF_CLASS, class_name, dscp_number
from llama.config.endpoints import endpoint
from llama.config.frozen import FrozenMapping
from llama.config.mistakes import ConfigErrors, Mistake
from llama.config.model import (
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
from llama.config.reflector import load_reflector
from llama.config.scraper import load_scraper
from llama.config.web import load_web

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

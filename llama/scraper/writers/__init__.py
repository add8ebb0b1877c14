"""The databases that the scraper can write to, found among Twisted's plugins by their type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.plugin import getPlugins

from llama.config import ScraperConfig, WriterConfig
from llama.interfaces import ITimeSeriesWriterMaker


class WriterConfigError(Exception):
    """What the configuration says about a writer is wrong; the text is ``FILE:LINE: …``."""


def makers() -> dict[str, Any]:
    """Return the `ITimeSeriesWriterMaker` of every installed type."""
    return {maker.type: maker for maker in getPlugins(ITimeSeriesWriterMaker)}


def make_writer(reactor: Any, config: WriterConfig) -> Any:
    """Make the `ITimeSeriesWriter` that one section asks for; raises `WriterConfigError`."""
    where = f"{config.file}:{config.line}: " if config.file else ""
    known = makers()
    if config.type not in known:
        raise WriterConfigError(
            f"{where}no writer of type {config.type!r}, expected {', '.join(sorted(known))}"
        )
    options = dict(config.options)
    if isinstance(path := options.get("path"), str):
        options["path"] = str(Path(config.file).parent.absolute() / Path(path).expanduser())
    try:
        return known[config.type].make(reactor, options)
    except ValueError as error:
        raise WriterConfigError(f"{where}writer {config.type}: {error}") from None


def make_writers(reactor: Any, config: ScraperConfig) -> list[Any]:
    """Make all writers of a configuration; raises `WriterConfigError` naming every mistake."""
    writers: dict[str, Any] = {}
    mistakes = []
    for section in config.writers:
        try:
            writer = make_writer(reactor, section)
        except WriterConfigError as error:
            mistakes.append(str(error))
            continue
        if writer.name in writers:
            where = f"{section.file}:{section.line}: " if section.file else ""
            mistakes.append(
                f"{where}a second writer named {writer.name!r}, expected a 'name' of its own"
            )
        writers[writer.name] = writer
    if mistakes:
        raise WriterConfigError("\n".join(mistakes))
    return list(writers.values())

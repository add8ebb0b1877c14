"""Keeps the certificate of an ``ssl:`` endpoint that of its files, which are renewed every few weeks."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.endpoints import SSL4ServerEndpoint, serverFromString
from twisted.internet.interfaces import IOpenSSLContextFactory
from twisted.logger import Logger
from zope.interface import implementer

from llama.config.endpoints import certificate_files

#: What tells one version of a file from the next.
_Version = tuple[int, int, int] | None


def keep_renewed(reactor: Any, server: Any, where: str) -> None:
    """Let an endpoint that Twisted made of ``where`` go with its files; does nothing without TLS."""
    if isinstance(server, SSL4ServerEndpoint):
        server._sslContextFactory = Renewed(reactor, server._sslContextFactory, where)


@implementer(IOpenSSLContextFactory)
class Renewed:
    """Reads the files again before a connection if they have changed since.

    What cannot be used, as while one of two files is new, leaves the certificate as it was, and is said.
    Later connections try again.
    """

    _log = Logger()

    def __init__(self, reactor: Any, options: Any, where: str) -> None:
        self._reactor = reactor
        self._options = options
        self._where = where
        self._files = certificate_files(where)
        self._used = self._versions()
        self._complained: tuple[_Version, ...] | None = None

    def getContext(self) -> Any:
        """Return the context of OpenSSL for one more connection."""
        versions = self._versions()
        if versions != self._used:
            try:
                server: Any = serverFromString(self._reactor, self._where)
                context = server._sslContextFactory.getContext()
            except Exception as error:  # OpenSSL's have no common ground
                self._complain(versions, error)
            else:
                self._options, self._used = server._sslContextFactory, versions
                self._log.info("{where}: its certificate was read again", where=self._where)
                return context
        return self._options.getContext()

    def _complain(self, versions: tuple[_Version, ...], error: Exception) -> None:
        if versions == self._complained:
            return
        self._complained = versions
        self._log.warn(
            "{where}: its new certificate cannot be used, the old one is ({why}); see that this user"
            " may read both files, and that they belong together",
            where=self._where,
            why=" ".join(str(error).split()) or type(error).__name__,
        )

    def _versions(self) -> tuple[_Version, ...]:
        return tuple(map(_version, self._files))


def _version(path: str) -> _Version:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size

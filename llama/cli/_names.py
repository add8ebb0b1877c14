"""Names of addresses, for commands that show paths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from llama.paths.names import ask, read_names


def namer(names: Path | None, resolve: bool) -> Callable[[str], str]:
    """Return what names addresses: a file like /etc/hosts, then reverse DNS if wanted.

    Raises `click.ClickException` for a file that cannot be read.
    """
    try:
        known = {} if names is None else read_names(names)
    except UnicodeDecodeError:
        raise click.ClickException(
            f"{names}: not UTF-8; expected one 'ADDRESS NAME' a line, like /etc/hosts"
        ) from None
    except OSError as e:
        raise click.ClickException(f"{names}: {e.strerror}") from None

    def name(address: str) -> str:
        if resolve and address not in known:
            known[address] = ask(address)
        return known.get(address, address)

    return name

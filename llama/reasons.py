"""Why something does not work, told once each: a log is no place for what is the case all the time."""

from __future__ import annotations

#: Reasons remembered; who gives more, with numbers of his own in each, is not listened to.
MOST = 100


class Reasons:
    """The reasons that were told since something last worked. True while there are any.

    Several may take turns, as do names that hang and servers that refuse: neither is news again then.
    """

    def __init__(self) -> None:
        self._told: set[str] = set()

    def __bool__(self) -> bool:
        """Return whether it does not work, and that was told."""
        return bool(self._told)

    def is_news(self, why: str) -> bool:
        """Take a reason; return whether it is to be told."""
        if why in self._told or len(self._told) >= MOST:
            return False
        self._told.add(why)
        return True

    def over(self) -> bool:
        """Forget them, since it works; return whether that is to be told."""
        told = bool(self._told)
        self._told.clear()
        return told

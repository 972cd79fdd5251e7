"""How a program ends early: for what a user can mend, and at a signal."""

import difflib
import signal
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. Its message is one line: what is wrong, and what would be right. The program exits
    with status 2."""


class Interrupted(Exception):
    """A signal stopped a run, which saved first. `status` is the exit status that shells expect of
    it."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest valid one, else all of them."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"

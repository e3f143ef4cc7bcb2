"""What may be wished of trials under way, from outside and at any time. No torch here."""

from enum import IntEnum


class Signal(IntEnum):
    """What is wished of trials under way."""

    CONTINUE = 0
    PAUSE = 1
    """Save and leave; they go on another time."""
    STOP = 2
    """Measure and end here: more steps would tell nothing new."""


class PausedError(Exception):
    """Training was asked to pause, and has saved how far it is."""

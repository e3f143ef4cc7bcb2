"""Signals that a running trial polls: continue, pause or stop. Imports no torch."""

from enum import IntEnum


class Signal(IntEnum):
    """Instruction to a running trial, followed at its next pause."""

    CONTINUE = 0
    PAUSE = 1
    """Save a checkpoint and exit; the trial resumes later."""
    STOP = 2
    """Evaluate and finish at the current step."""


class PausedError(Exception):
    """Raised after a trial has saved a checkpoint in response to PAUSE."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step

    def __str__(self) -> str:
        return f"paused after step {self.step}"

"""Standard streams that can write every character to every terminal, and whose writes raise no errors."""

import codecs
import errno
import io
import os
import sys

TYPE_CHECKING = False  # raycap/host/isolation.py explains why typing is not imported
if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

REPLACEMENTS = {
    "…": "...", "→": "->", "–": "-", "—": "-", "−": "-", "×": "x", "±": "+-", "≤": "<=", "≥": ">=", "“": '"', "”": '"',
    "’": "'", "α": "alpha", "γ": "gamma", "₀": "0",
}  # fmt: skip
"""ASCII substitutes for characters of raycap's messages that a terminal cannot show. Others become backslash escapes."""
ERROR_HANDLER = "raycap.terminal"


class _Output(io.FileIO):
    """A standard stream that discards data that cannot be written, so a closed terminal or a full disk ends no sweep."""

    error: OSError | None = None
    """The first error. Everything that is written after it is discarded."""

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write data; returns the number of bytes that were written or discarded."""
        while self.error is None:
            try:
                written = super().write(data)
            except OSError as error:
                self.error = error
            else:
                if written is not None:
                    return written
                os.set_blocking(self.fileno(), True)  # a program that uses the same terminal has made it non-blocking
        return memoryview(data).nbytes


def open_standard_streams() -> None:
    """Replace standard output and standard error of this process.

    Streams that the parent process has closed are opened on /dev/null. Otherwise the next file to be opened, such as a
    database, would get the number of standard output, and libraries would write their messages into it.
    """
    codecs.register_error(ERROR_HANDLER, _replace)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False))
    sys.stdout, sys.stderr = _stream(1, sys.stdout), _stream(2, sys.stderr)


def take_output_error() -> str | None:
    """Return the reason for which standard output could not be written, and clear it.

    Returns None if everything was written, or if the reader of a pipe has ended, as in `raycap plan SPEC | head`.
    """
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if not isinstance(raw, _Output) or raw.error is None:
        return None
    error, raw.error = raw.error, OSError(errno.EPIPE, "was reported")
    return None if error.errno == errno.EPIPE else error.strerror


def _stream(number: int, former: object) -> io.TextIOWrapper:
    raw = _Output(number, "w", closefd=False)
    encoding = getattr(former, "encoding", None) or "utf-8"
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, errors=ERROR_HANDLER, line_buffering=number == 2 or raw.isatty()
    )


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace the first character that an encoding lacks. This is an error handler for `codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    return REPLACEMENTS.get(character) or character.encode("ascii", "backslashreplace"), error.start + 1

"""Execution of a command line with a safe search path, working standard streams and errors printed without a traceback.

The entry points import this module before any other; raycap/host/isolation.py explains why that matters.
"""

import os
import sys

from raycap.host import isolation
from raycap.terminal import streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

EXIT_REFUSED, EXIT_INTERRUPTED = 2, 130


def run_command(load: "Callable[[], Callable[[], object]]") -> "NoReturn":
    """Run a command line and exit.

    Args:
        load: Function that imports the command line and returns it. Errors and Ctrl-C during these imports are reported
            in the same way as those of the command.
    """
    streams.open_standard_streams()
    code: object = 0
    try:
        _prepare()
        import signal  # only now, since before `_prepare` a file of the user could be imported instead

        # Without handlers, SIGTERM and SIGHUP would end the process without a message and with another exit code.
        handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        numbers = [number for number in handled if signal.getsignal(number) is not signal.SIG_IGN]
        for number in numbers:
            signal.signal(number, _exit_while_loading)
        command = load()
        for number in numbers:
            signal.signal(number, signal.default_int_handler)
        command()
    except SystemExit as ended:  # typer ends every command this way
        code = ended.code
    except KeyboardInterrupt:
        import signal

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # another Ctrl-C would print a traceback
        code = EXIT_INTERRUPTED
        print("Interrupted.", file=sys.stderr)
    except Exception as error:
        message = _describe(error)
        if message is None:
            raise
        code = EXIT_REFUSED
        print(message, file=sys.stderr)
    if lost := streams.take_output_error():
        print(f"standard output cannot be written: {lost}. Write to another file or disk.", file=sys.stderr)
        code = code or EXIT_REFUSED
    sys.exit(code)  # type: ignore[arg-type]


def _exit_while_loading(number: int, frame: object) -> None:
    """Exit at once, as there is nothing to clean up yet.

    A KeyboardInterrupt that reaches a callback of a package's C code is printed with its traceback and then ignored.
    """
    os.write(2, b"Interrupted.\n")
    os._exit(EXIT_INTERRUPTED)


def _prepare() -> None:
    """Isolate the process from the user's files and settings, and refuse those from which it cannot be isolated."""
    try:
        os.getcwd()
    except OSError as error:
        raise OSError(
            f"the working directory cannot be used: {error.strerror}. Change to another folder with cd"
        ) from None
    hidden = isolation.hidden_modules()
    isolation.isolate()
    if sys.flags.optimize > 1:
        raise OSError(
            "PYTHONOPTIMIZE=2 and -OO remove docstrings, without which Ray does not start: unset PYTHONOPTIMIZE"
        )
    from raycap.host.preflight import provide_home

    provide_home()
    for name, file in hidden.items():
        raise OSError(f"{file} hides Python's module {name}: rename the file, or remove its folder from PYTHONPATH")


def _describe(error: Exception) -> str | None:
    """Return the message of an error that the user can correct, or None for any other error."""
    if isinstance(error, ImportError) and not (error.name or "").startswith("raycap"):
        package = (error.name or "a package").partition(".")[0]
        problem = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        install = f"{sys.executable} -m pip install -e {isolation.PACKAGE_ROOT}"
        return f"{package} {problem}. To install it with all other packages that raycap needs: {install}"
    from raycap.errors import CannotRunError
    from raycap.spec.document import SpecError

    if isinstance(error, SpecError):
        return "\n".join(error.problems)
    return str(error) if isinstance(error, CannotRunError | OSError) else None

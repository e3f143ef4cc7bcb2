"""Entry point of the command `raycap`, and of `python -m raycap`."""

from raycap.commands.entry import run_command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def load_command() -> "Callable[[], object]":
    """Import the command line and return it."""
    from raycap.cli import app

    return app


def main() -> None:
    """Run the command line of this process; does not return."""
    run_command(load_command)


if __name__ == "__main__":
    main()

"""Entry point `python -m raycap.sweep SPEC`, the same as `raycap run SPEC`."""

from raycap.commands.entry import run_command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def load_command() -> "Callable[[], object]":
    """Import the command and return it."""
    from functools import partial

    import typer

    from raycap.commands.run import run

    return partial(typer.run, run)


if __name__ == "__main__":
    run_command(load_command)

"""Runs a sweep like `python -m raycap.sweep SPEC [OVERRIDE ...]`, but trains on the CPU even where the spec reserves GPUs.

Tests start this file as a script on clusters whose GPUs are simulated.
"""

import sys
import time

from raycap import pipeline
from raycap.spec.file import SpecError
from raycap.terminal.format import wide_console

if __name__ == "__main__":
    spec, *overrides = sys.argv[1:]
    try:
        code = pipeline.run_spec(spec, tuple(overrides), wide_console(), time.monotonic(), cpu_only=True)
    except SpecError as error:
        print(*error.problems, sep="\n", file=sys.stderr)
        code = pipeline.EXIT_BAD_SPEC
    sys.exit(code)

"""How many bits does a transformer store per parameter, and which algorithm does it store them with?"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from raycap.analysis.frames import Sweep


def load(folder: "str | os.PathLike[str]") -> "Sweep":
    """A sweep that has run, by its folder or URI (`runs/grid`), as data frames and figures; no Ray and no MLflow.

    Raises FileNotFoundError where no sweep has run, and ValueError for files of it that cannot be read.
    """
    from raycap.analysis.frames import Sweep

    return Sweep.at(folder)

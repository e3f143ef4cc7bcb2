"""raycap: measure how many bits of knowledge a transformer stores per parameter, and with which encoding scheme."""

TYPE_CHECKING = False  # raycap/host/isolation.py explains why typing is not imported
if TYPE_CHECKING:
    import os

    from raycap.analysis.frames import Sweep


def load(folder: "str | os.PathLike[str]") -> "Sweep":
    """Load the results of a sweep from its folder or URI, as data frames and figures.

    Only the stored files are read; Ray and MLflow are not imported.

    Args:
        folder: Folder or URI of the sweep, such as `runs/grid` or `s3://bucket/runs/grid`.

    Raises:
        FileNotFoundError: The folder holds no sweep.
        ValueError: A file of the sweep cannot be read.
    """
    from raycap.analysis.frames import Sweep

    return Sweep.at(folder)

"""Reading and writing of files in a local folder or an object store, and their paths."""

from raycap.storage.files import (
    CHECKPOINT_PREFIX,
    STACK_FILE,
    TRIALS_FOLDER,
    UNFINISHED,
    DamagedError,
    Storage,
    checkpoint_path,
    checkpoint_steps,
    failure_path,
    forget_checkpoints,
    model_folder,
    read_stack,
    record_stack,
    result_path,
    split_folder,
    trial_folder,
)

__all__ = [
    "CHECKPOINT_PREFIX",
    "STACK_FILE",
    "TRIALS_FOLDER",
    "UNFINISHED",
    "DamagedError",
    "Storage",
    "checkpoint_path",
    "checkpoint_steps",
    "failure_path",
    "forget_checkpoints",
    "model_folder",
    "read_stack",
    "record_stack",
    "result_path",
    "split_folder",
    "trial_folder",
]

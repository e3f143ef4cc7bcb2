"""Process group of the workers of a trial."""

from typing import Any

from ray.train.backend import Backend, BackendConfig
from ray.train.torch import TorchConfig


class WorkersConfig(TorchConfig):
    """A `TorchConfig` that starts no process group for a single worker.

    The group needs a server that listens on all interfaces without a token, and a single worker does not use it.
    """

    @property
    def backend_cls(self) -> type[Backend]:
        """The class that sets the workers up."""
        return _group_of_several(super().backend_cls)


def _group_of_several(backend: type[Backend]) -> type[Backend]:
    """Return a subclass of a backend that leaves a single worker as it is."""

    def on_start(self: Backend, worker_group: Any, backend_config: BackendConfig) -> None:
        if len(worker_group) > 1:
            backend.on_start(self, worker_group, backend_config)

    return type("GroupOfSeveral", (backend,), {"on_start": on_start})

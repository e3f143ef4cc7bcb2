"""Step times on GPUs that are not at hand, from their memory bandwidth and from measurements on an H100.

Small models are limited by the host, which launches kernels and builds batches, and larger ones by the memory of the card.
The constants reproduce the steps that were measured on an H100 (tests/benchmarks/gpu-results/) to within a factor of 1.6; no
other card was measured. Use the estimate to decide what to run, and `raycap plan --estimate` on the machine itself for a
better one.
"""

from dataclasses import dataclass
from enum import StrEnum

from raycap.plan.sizes import block_activations, computed_parameters
from raycap.plan.stacks import StackGroup
from raycap.spec import ExecutionSpec, Precision, ResolvedModel


class Gpu(StrEnum):
    """Cards with known rates."""

    H100 = "h100"
    """NVIDIA H100 with 80 GB (SXM)."""
    A100 = "a100"
    """NVIDIA A100 with 80 GB (SXM)."""
    A10G = "a10g"
    """NVIDIA A10G with 24 GB, in AWS's g5 machines."""
    L4 = "l4"
    """NVIDIA L4 with 24 GB, in Google's g2 machines."""


@dataclass(frozen=True)
class Rates:
    """Rates of a card, from its data sheet."""

    bytes_per_s: float
    """Memory bandwidth."""
    flops_per_s: float
    """Dense bf16 products."""


RATES = {
    Gpu.H100: Rates(3.35e12, 989e12),
    Gpu.A100: Rates(2.04e12, 312e12),
    Gpu.A10G: Rates(0.60e12, 70e12),
    Gpu.L4: Rates(0.30e12, 121e12),
}
REACHED_BANDWIDTH = 0.78
"""Share of the memory bandwidth that kernels reach."""
REACHED_FLOPS = 0.5
"""Share of the rate of products that large models reach."""
BYTES_PER_ACTIVATION = 37.5
"""Bytes in bf16 that a step moves per token and stored activation of the blocks."""
HOST_SECONDS, HOST_SECONDS_PER_LAYER = 2.5e-3, 4.4e-3
"""Time in which the host launches the kernels of a step, for the model and for each layer."""
HOST_SECONDS_PER_ROW = 4e-6
"""Time in which the host builds a batch, for each row."""
COMPILED_SHARE = 0.45
"""Share of the launches and of the bytes that compiled blocks need."""
GRAPH_SECONDS, GRAPH_SECONDS_PER_ROW = 1.5e-3, 0.3e-6
"""Time of the host with `execution.cuda_graph`, which replays a step and builds batches on the card."""


def seconds_per_step(group: StackGroup, execution: ExecutionSpec, gpu: Gpu) -> float:
    """Return the time of a training step of a stack, with as many workers on the card as `gpus_per_worker` allows."""
    trial, rates = group[0], RATES[gpu]
    model, training = trial.spec.model, trial.spec.training
    assert isinstance(model, ResolvedModel), "trials are resolved"
    rows = len(group) * training.batch_size / execution.num_workers
    tokens = len(group) * trial.tokens / trial.steps / execution.num_workers
    share = COMPILED_SHARE if execution.compile else 1.0
    size = 2.0 if training.precision is Precision.FP32 else 1.0
    moved = BYTES_PER_ACTIVATION * size * share * tokens * block_activations(model)
    products = 6.0 * size * tokens * computed_parameters(trial)
    device = max(moved / (REACHED_BANDWIDTH * rates.bytes_per_s), products / (REACHED_FLOPS * rates.flops_per_s))
    if execution.cuda_graph:
        host = GRAPH_SECONDS + GRAPH_SECONDS_PER_ROW * rows
    else:
        host = share * (HOST_SECONDS + HOST_SECONDS_PER_LAYER * model.depth) + HOST_SECONDS_PER_ROW * rows
    workers_per_card = max(1.0, 1.0 / execution.gpus_per_worker) if execution.gpus_per_worker else 1.0
    return max(host, device * workers_per_card)

"""Estimates of the time, GPU hours, memory and cost of a run from the times of its training steps; formulas only."""

import heapq
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from raycap.plan.sizes import block_activations, computed_parameters
from raycap.plan.stacks import StackGroup
from raycap.results import PlannedTrial
from raycap.spec import (
    Biographies,
    ExecutionSpec,
    KeptModels,
    Muon,
    NamesOnly,
    Precision,
    ResolvedModel,
    TrialSpec,
    UserTexts,
)

SWEEP_SECONDS = 20.0
"""Time of a run outside its trials: start of Python, Ray and MLflow, analysis and shutdown, measured on two cores."""
GROUP_SECONDS = 2.0
"""Time of a stack outside its steps and evaluations, with worker processes that already run."""
EVALUATION_SHARE = 0.4
"""Time to evaluate a text relative to a training step on it: 0.32 to 0.41 (tests/benchmarks/evaluation.py)."""
PROCESS_BYTES = 0.6e9
"""Memory of a worker process with torch and Ray loaded, and of the process that prepares its rows."""
FLOAT_BYTES = 4
"""Size of a number in fp32."""
LOGIT_COPIES = 3
"""Arrays of the size of the logits: logits, softmax and gradient."""
ANSWER_SHARE = 1 / 3
"""Share of the tokens of a question that belong to its answer; logits are computed for these only."""
BYTES_PER_TEXT = 10
"""Memory per trained text for its id and its index in the order."""


@dataclass(frozen=True)
class StepTime:
    """Time of a training step of a stack, and its source."""

    seconds_per_step: float
    source: str
    """Description of the measurement, for display."""


@dataclass(frozen=True)
class TrialEstimate:
    """Estimated cost of a trial, or of the stack that it trains in."""

    seconds: float
    """Remaining training time, including start and evaluations."""
    source: str
    """Source of the step time, for display."""
    worker_bytes: float
    """Memory of one worker."""


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of a run."""

    trials: Mapping[str, TrialEstimate]
    """By trial_id, without trials whose step time is unknown."""
    unknown: int
    """Number of trials whose step time is unknown; the totals do not include them."""
    slots: int
    """Stacks that train at the same time."""
    seconds: float
    """From the start of the command to its end."""
    gpu_hours: float
    dollars: float | None
    """None if no price is given."""

    @property
    def worker_bytes(self) -> float:
        """Memory of the largest worker."""
        return max((trial.worker_bytes for trial in self.trials.values()), default=0.0)

    @property
    def sources(self) -> dict[str, int]:
        """Number of trials by the source of their step time."""
        counts: dict[str, int] = {}
        for trial in self.trials.values():
            counts[trial.source] = counts.get(trial.source, 0) + 1
        return counts


def estimate(
    groups: Sequence[StackGroup],
    step_times: Sequence[StepTime | None],
    execution: ExecutionSpec,
    *,
    slots: int,
    start_steps: Sequence[int],
    price_per_hour: float | None = None,
) -> Estimate:
    """Return the estimated cost of training stacks on a number of slots.

    Args:
        groups: The stacks.
        step_times: Step time of each stack; None if it is unknown.
        execution: Resources of a trial.
        slots: Stacks that train at the same time.
        start_steps: Step from which each stack resumes.
        price_per_hour: Price of a GPU hour if trials use GPUs, otherwise of an hour of the machine, in dollars.
    """
    trials: dict[str, TrialEstimate] = {}
    known = []
    for group, step_time, start_step in zip(groups, step_times, start_steps, strict=True):
        if step_time is None:
            continue
        seconds = group_seconds(group, step_time.seconds_per_step, start_step)
        known.append(seconds)
        memory = worker_bytes(group, execution)
        trials |= {trial.trial_id: TrialEstimate(seconds, step_time.source, memory) for trial in group}
    seconds = SWEEP_SECONDS + makespan(known, slots) if groups else 0.0
    gpu_hours = execution.num_workers * execution.gpus_per_worker * sum(known) / 3600
    paid_hours = gpu_hours if execution.gpus_per_worker else seconds / 3600
    return Estimate(
        trials=trials,
        unknown=sum(map(len, groups)) - len(trials),
        slots=slots,
        seconds=seconds,
        gpu_hours=gpu_hours,
        dollars=None if price_per_hour is None else price_per_hour * paid_hours,
    )


def group_seconds(group: StackGroup, seconds_per_step: float, steps_done: int = 0) -> float:
    """Return the training time of a stack from a step on, in seconds, including its start and evaluations."""
    steps, training = group[0].steps, group[0].spec.training
    left = max(steps - steps_done, 0)
    evaluations = sum(step > steps_done for step in training.evaluation_steps(steps))
    per_text = seconds_per_step / (training.batch_size * len(group))
    evaluated = sum(num_evaluated(trial) for trial in group)
    return GROUP_SECONDS + left * seconds_per_step + evaluations * evaluated * EVALUATION_SHARE * per_text


def num_evaluated(trial: PlannedTrial) -> float:
    """Return the approximate number of texts in one evaluation; multi-hop questions are sampled."""
    return sum(
        min(texts, trial.spec.training.evaluation_sample) if hops > 1 else texts for hops, texts in _texts(trial)
    )


def _texts(trial: PlannedTrial) -> Iterable[tuple[int, float]]:
    """Yield the hops and the approximate number of texts of each corpus; a biography counts as one text."""
    questions = trial.spec.questions
    for population in trial.populations:
        people, relations = population.num_profiles, len(population.relations)
        subjects = len(population.attribute_entropies_bits) + relations
        if isinstance(questions, NamesOnly):
            yield 0, people
        elif isinstance(questions, Biographies | UserTexts):
            yield 1, people * questions.per_person
        else:
            texts = float(people) * subjects * population.num_phrasings
            yield from ((hops, texts * relations ** (hops - 1)) for hops in questions.hops)


def makespan(seconds: Collection[float], slots: int) -> float:
    """Return the end of the last job if each job, longest first, starts on the first free slot."""
    ends = [0.0] * max(1, min(slots, len(seconds)))
    for job in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + job)
    return max(ends)


def slots_of(execution: ExecutionSpec, cpus: float, gpus: float) -> int:
    """Return the number of stacks that a machine trains at the same time; at least 1, even if none fits."""
    workers = int(execution.workers_on(cpus, gpus))
    return max(1, min(workers // execution.num_workers, execution.max_concurrent_trials))


def worker_bytes(group: StackGroup, execution: ExecutionSpec) -> float:
    """Return the approximate memory of one worker of a stack, in bytes.

    The sum of the process, weights, gradients, optimizer state, activations of a batch, and data.
    """
    trial, members = group[0], len(group)
    spec, parameters = trial.spec, trial.parameters
    model, training = spec.model, spec.training
    assert isinstance(model, ResolvedModel), "trials are resolved"
    # AdamW stores four numbers per parameter: weight, gradient and two moments. Muon needs one moment for matrices.
    with_one_moment = parameters.attention + parameters.mlp if isinstance(training.optimizer, Muon) else 0
    frozen = parameters.base.total if parameters.base else 0
    state = FLOAT_BYTES * (4 * parameters.total - with_one_moment + frozen)
    tokens = trial.tokens / trial.steps / execution.num_workers
    texts = training.batch_size / execution.num_workers
    # Attention scores and their softmax: heads times (tokens of a text) numbers per token and block each.
    in_blocks = block_activations(model) + model.depth * 2 * model.num_attention_heads * tokens / texts
    vocab_size = parameters.model.embedding / model.hidden_size
    size = FLOAT_BYTES if training.precision is Precision.FP32 else FLOAT_BYTES / 2
    loss_share = 1.0 if isinstance(spec.questions, NamesOnly | Biographies | UserTexts) else ANSWER_SHARE
    activations = size * tokens * (in_blocks + LOGIT_COPIES * loss_share * vocab_size)
    data = BYTES_PER_TEXT * sum(texts for _, texts in _texts(trial))
    return PROCESS_BYTES + members * (state + activations + data)


def max_stored_models(trial: PlannedTrial, execution: ExecutionSpec) -> int:
    """Return the largest number of models that a trial stores, the final one included.

    It stores fewer if training stops early, or if it is shorter than some of the exposures asked for.
    """
    match execution.keep_models:
        case KeptModels.FINAL:
            return 1
        case KeptModels.EVALUATIONS:
            return len(trial.spec.training.evaluation_steps(trial.steps))
        case exposures:
            return 1 + len(exposures)


def model_bytes(trials: Iterable[PlannedTrial], execution: ExecutionSpec) -> int:
    """Return the largest disk space of the stored models of some trials, in bytes.

    Weights are stored in fp32. Those that the passes of a loop share are stored for each pass.
    """
    return sum(FLOAT_BYTES * computed_parameters(trial) * max_stored_models(trial, execution) for trial in trials)


# --- trials with the same step time -----------------------------------------------------------------------------------


def shape_of(spec: TrialSpec, execution: ExecutionSpec) -> str:
    """Return a key that is equal for trials with the same step time.

    Such trials differ only in seeds, optimizer settings, length and evaluations.
    """
    irrelevant = {
        "profiles": {"seed"},
        "training": {
            "seed",
            "order_seed",
            "length",
            "curriculum",
            "stop",
            "num_evaluations",
            "evaluate_at",
            "evaluation_sample",
        },
    }
    tree = spec.model_dump(mode="json", exclude=irrelevant)
    optimizer = tree["training"]["optimizer"]
    tree["training"]["optimizer"] = optimizer.get("function", optimizer["kind"])
    resources = execution.model_dump(
        include={"num_workers", "cpus_per_worker", "gpus_per_worker", "compile", "cuda_graph"}
    )
    return json.dumps([tree, resources], sort_keys=True)


def work_per_step(group: StackGroup) -> float:
    """Return the approximate amount of computation in a step of a stack: parameters times tokens."""
    return sum(computed_parameters(trial) * trial.tokens / trial.steps for trial in group)


def evenly_spaced(works: Sequence[float], max_num: int) -> list[int]:
    """Return the indices of at most `max_num` works, evenly spaced in sorted order, with the least and the greatest."""
    order = sorted(range(len(works)), key=lambda index: works[index])
    if len(order) <= max_num:
        return order
    return [order[round(rank * (len(order) - 1) / (max_num - 1))] for rank in range(max_num)]


def interpolated_seconds(work: float, known: Sequence[tuple[float, float]]) -> float:
    """Return the seconds of a step from the (work, seconds) of other steps.

    Interpolates linearly in log-log space between the two nearest works, and extrapolates in proportion to the work.
    """
    below = max(((w, s) for w, s in known if w <= work), default=None)
    above = min(((w, s) for w, s in known if w >= work), default=None)
    if below and above and below[0] < above[0]:
        share = math.log(work / below[0]) / math.log(above[0] / below[0])
        return float(below[1] * (above[1] / below[1]) ** share)
    nearest = below or above
    assert nearest, "known must not be empty"
    return nearest[1] * work / nearest[0]

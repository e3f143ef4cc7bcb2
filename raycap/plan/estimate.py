"""What a run would take, from how long its steps take: time, GPU hours, memory and money. Formulas alone; all rough."""

import heapq
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from raycap.results import PlannedTrial
from raycap.spec import Biographies, ExecutionSpec, ModelByWidth, Muon, NamesOnly, NumHeads, Precision, TrialSpec

StackGroup = tuple[PlannedTrial, ...]
"""Trials that train together, as a stack."""

SWEEP_SECONDS = 20.0
"""Of a whole run beside its trials: the start of Python, Ray and MLflow, the analysis and the end, on two cores."""
GROUP_SECONDS = 2.0
"""Of every stack beside its steps and evaluations, once Ray's processes are warm."""
EVALUATION_SHARE = 0.4
"""What evaluating a text takes, of what training on it takes: 0.32 to 0.41 (tests/benchmarks/evaluation.py)."""
PROCESS_BYTES = 0.6e9
"""Of a worker that has loaded torch and Ray, and of a reader of its rows."""
FLOAT_BYTES = 4
ACTIVATIONS_PER_LAYER = 24
"""Numbers kept for the gradient by a layer, in widths of the model, for every token: norms, q, k, v, MLP of width 4h."""
LOGIT_COPIES = 3
"""Logits, their softmax and its gradient."""
ANSWER_SHARE = 1 / 3
"""Of a question's tokens are its answer's, for which alone there are logits."""
BYTES_PER_TEXT = 10
"""Ids and orders of the questions that are trained."""


@dataclass(frozen=True)
class StepTime:
    """How fast a stack trains."""

    seconds_per_step: float
    source: str
    """Where that is known from, for people."""


@dataclass(frozen=True)
class TrialEstimate:
    """What a trial would take, or the stack that it trains in."""

    seconds: float
    """What is still to be trained, evaluations and start included."""
    source: str
    worker_bytes: float


@dataclass(frozen=True)
class Estimate:
    """What a run would take."""

    trials: Mapping[str, TrialEstimate]
    """By trial_id; trials whose pace nobody knows are missing."""
    unknown: int
    """Trials that are left out of the sums."""
    slots: int
    """Stacks at once."""
    seconds: float
    """From the start of the command to its end."""
    gpu_hours: float
    dollars: float | None
    """None where no price is given."""

    @property
    def worker_bytes(self) -> float:
        """Of the largest worker."""
        return max((trial.worker_bytes for trial in self.trials.values()), default=0.0)

    @property
    def sources(self) -> dict[str, int]:
        """How many trials' paces are known from where."""
        found: dict[str, int] = {}
        for trial in self.trials.values():
            found[trial.source] = found.get(trial.source, 0) + 1
        return found


def estimate(
    groups: Sequence[StackGroup],
    step_times: Sequence[StepTime | None],
    execution: ExecutionSpec,
    *,
    slots: int,
    steps_done: Mapping[str, int],
    price_per_hour: float | None = None,
) -> Estimate:
    """What training some groups, at one pace each, would take on so many slots.

    `steps_done` is by trial_id. A price is that of a GPU hour where trials take GPUs, else that of an hour of the machine.
    """
    trials: dict[str, TrialEstimate] = {}
    known = []
    for group, step_time in zip(groups, step_times, strict=True):
        if step_time is None:
            continue
        seconds = group_seconds(group, step_time.seconds_per_step, max(steps_done.get(t.trial_id, 0) for t in group))
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
    """How long a stack trains from a step on, with its start and its evaluations."""
    steps, training = group[0].steps, group[0].spec.training
    left = max(steps - steps_done, 0)
    evaluations = min(training.num_evaluations, 1 + (int(math.log2(steps / steps_done)) if steps_done else steps))
    per_text = seconds_per_step / (training.batch_size * len(group))
    evaluated = sum(num_evaluated(trial) for trial in group)
    return GROUP_SECONDS + left * seconds_per_step + evaluations * evaluated * EVALUATION_SHARE * per_text


def num_evaluated(trial: PlannedTrial) -> float:
    """Texts of one evaluation, about."""
    return sum(
        min(texts, trial.spec.training.evaluation_sample) if hops > 1 else texts for hops, texts in _texts(trial)
    )


def _texts(trial: PlannedTrial) -> Iterable[tuple[int, float]]:
    """Hops and number of the texts of each corpus, about; sentences of biographies together are one text."""
    questions = trial.spec.questions
    for population in trial.populations:
        people, relations = population.num_profiles, len(population.relations)
        subjects = len(population.attribute_entropies_bits) + relations
        if isinstance(questions, NamesOnly):
            yield 0, people
        elif isinstance(questions, Biographies):
            yield 1, people * questions.per_person
        else:
            yield from ((hops, float(people) * relations ** (hops - 1) * subjects) for hops in questions.hops)


def makespan(seconds: Collection[float], slots: int) -> float:
    """When the last of some jobs ends if the longest are started first, each on the first slot that is free."""
    busy = [0.0] * max(1, min(slots, len(seconds)))
    for each in sorted(seconds, reverse=True):
        heapq.heapreplace(busy, busy[0] + each)
    return max(busy)


def slots_of(execution: ExecutionSpec, cpus: float, gpus: float) -> int:
    """How many stacks a machine trains at once; 1 also where it could not train any."""
    workers = int(execution.workers_on(cpus, gpus))
    return max(1, min(workers // execution.num_workers, execution.max_concurrent_trials))


def worker_bytes(group: StackGroup, execution: ExecutionSpec) -> float:
    """Memory of one worker of a stack, about: process, weights, gradients, optimizer, activations of a batch, data."""
    trial, members = group[0], len(group)
    spec, parameters = trial.spec, trial.parameters
    model, training = spec.model, spec.training
    assert isinstance(model, ModelByWidth), "trials are resolved"
    with_one_moment = parameters.attention + parameters.mlp if isinstance(training.optimizer, Muon) else 0
    state = FLOAT_BYTES * (4 * parameters.total - with_one_moment)
    tokens = trial.tokens / trial.steps / execution.num_workers
    texts = training.batch_size / execution.num_workers
    heads = model.heads.num_heads if isinstance(model.heads, NumHeads) else model.hidden_size // model.head_size
    per_layer = ACTIVATIONS_PER_LAYER * model.hidden_size + 2 * heads * tokens / texts
    vocabulary = parameters.embedding / model.hidden_size
    size = FLOAT_BYTES if training.precision is Precision.FP32 else FLOAT_BYTES / 2
    measured = 1.0 if isinstance(spec.questions, NamesOnly | Biographies) else ANSWER_SHARE
    activations = size * tokens * (per_layer * model.num_layers + LOGIT_COPIES * measured * vocabulary)
    data = BYTES_PER_TEXT * sum(texts for _, texts in _texts(trial))
    return PROCESS_BYTES + members * (state + activations + data)


# --- what has the same pace ---------------------------------------------------------------------------------------------


def shape_of(spec: TrialSpec, execution: ExecutionSpec) -> str:
    """The same for trials whose steps take equally long: they differ in seeds, rates, length and when they are measured."""
    own = {
        "profiles": {"seed"},
        "training": {"seed", "order_seed", "length", "curriculum", "stop", "num_evaluations", "evaluation_sample"},
    }
    tree = spec.model_dump(mode="json", exclude=own)
    tree["training"]["optimizer"] = tree["training"]["optimizer"]["kind"]
    where = execution.model_dump(include={"num_workers", "cpus_per_worker", "gpus_per_worker", "compile"})
    return json.dumps([tree, where], sort_keys=True)


def work_per_step(group: StackGroup) -> float:
    """What a step of a stack computes, about: parameters times tokens."""
    return sum(trial.parameters.total * trial.tokens / trial.steps for trial in group)


def spread(works: Sequence[float], most: int) -> list[int]:
    """At most so many places of some works, from the least to the greatest and evenly between."""
    order = sorted(range(len(works)), key=lambda place: works[place])
    if len(order) <= most:
        return order
    return [order[round(place * (len(order) - 1) / (most - 1))] for place in range(most)]


def between(work: float, known: Sequence[tuple[float, float]]) -> float:
    """Seconds of a step of some work, from (work, seconds) of others: on a straight line between the two nearest in the
    logarithms of both, and in proportion beyond them.
    """
    below = max(((w, s) for w, s in known if w <= work), default=None)
    above = min(((w, s) for w, s in known if w >= work), default=None)
    if below and above and below[0] < above[0]:
        share = math.log(work / below[0]) / math.log(above[0] / below[0])
        return below[1] * (above[1] / below[1]) ** share
    nearest = below or above
    assert nearest, "nothing is known"
    return nearest[1] * work / nearest[0]

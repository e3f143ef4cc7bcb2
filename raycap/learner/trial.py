"""The whole story of one trial, without Ray: population, tokens, model, training, measurements, result."""

import importlib.metadata
import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

from raycap.facts.hosted import profiles_of
from raycap.facts.order import QuestionOrder, num_steps
from raycap.facts.questions import num_questions
from raycap.learner import model as llama
from raycap.learner import optim
from raycap.learner.evaluation import DivergedError, answer_losses
from raycap.learner.rows import RowSource
from raycap.learner.tokens import Composer, Rows, build_tokenizer, num_embeddings, save_tokenizer
from raycap.learner.training import Snapshot, pause_steps, train
from raycap.results import Evaluation, LossTable, ParameterCounts, Provenance, TrialResult
from raycap.spec import ModelByWidth, TrialSpec
from raycap.storage import Storage

STATE_FILE = "state.pt"
STORED_VERSIONS = ("torch", "numpy", "tokenizers", "ray", "mlflow")


CPU = torch.device("cpu")


@dataclass(frozen=True)
class Place:
    """Where this worker stands among the workers of its trial, and what it computes on."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU


@dataclass(frozen=True)
class TrainedTrial:
    """A finished trial in memory."""

    result: TrialResult
    model: llama.Llama
    tokenizer: Any

    def save_model(self, storage: Storage, folder: str) -> None:
        """Write the model and its tokenizer as transformers loads them."""
        with TemporaryDirectory(prefix="raycap-") as local:
            llama.save(self.model, Path(local))
            save_tokenizer(self.tokenizer, Path(local))
            storage.write_folder(folder, Path(local))


Report = Callable[[Evaluation | None, Path | None], None]
"""Called at every pause, equally often on every worker: the evaluation if there was one, and on rank 0 a folder with
the checkpoint, which is deleted when the call returns."""


def run_trial(
    spec: TrialSpec,
    *,
    source_commit: str,
    open_rows: Callable[[RowSource, int], Iterator[Rows]] = RowSource.rows_from,
    report: Report = lambda evaluation, checkpoint: None,
    resume_from: Path | None = None,
    checkpoint_every: int = 5_000,
    place: Place = Place(),
) -> TrainedTrial:
    """Train and measure one resolved trial; continues from the checkpoint in `resume_from` if there is one.

    With world_size > 1 every worker calls this inside an initialised torch.distributed group.
    Raises DivergedError if the loss stops being finite.
    """
    assert isinstance(spec.model, ModelByWidth), "run_trial takes resolved trials; use plan.expand"
    hops, training = spec.questions.hops, spec.training
    profiles = profiles_of(spec.profiles)
    tokenizer = build_tokenizer(spec.tokenizer, profiles)
    composer = Composer.build(profiles, tokenizer)
    order = QuestionOrder.of(profiles, spec.questions, training)
    mean_tokens = {k: composer.mean_tokens(k) for k in hops}
    steps = num_steps(training, spec.questions, num_questions(profiles, 1), {k: mean_tokens[k][0] for k in hops})
    shares = {1: spec.questions.one_hop_share, 2: 1 - spec.questions.one_hop_share}

    vocab_size = num_embeddings(spec.tokenizer, tokenizer)
    weights_generator = torch.Generator().manual_seed(training.seed)
    model = llama.build(spec.model, vocab_size, generator=weights_generator).to(place.device)
    optimizer = optim.build(training.optimizer, model)
    state = _State()
    if resume_from is not None:
        state = _State.load(resume_from / STATE_FILE, model, optimizer, place.device)
        if place.rank > 0:  # what was summed up since the last evaluation is rank 0's, and must count once
            state.loss_sum_bits, state.num_rows = 0.0, 0

    source = RowSource(composer, order, steps, place.rank, place.world_size)
    evaluation_steps, pauses = pause_steps(steps, training.num_evaluations, checkpoint_every)
    rows = open_rows(source, state.step)
    snapshots = train(
        model,
        optimizer,
        rows,
        training,
        num_steps=steps,
        pauses=pauses,
        start_step=state.step,
        mean_answer_tokens=sum(shares[k] * mean_tokens[k][1] for k in hops),
        world_size=place.world_size,
    )
    for snapshot in snapshots:
        state.add(snapshot)
        evaluation = None
        if snapshot.step in evaluation_steps:
            try:
                part = answer_losses(
                    model,
                    composer,
                    hops,
                    sample=training.evaluation_sample,
                    seed=training.seed,
                    precision=training.precision,
                    rank=place.rank,
                    world_size=place.world_size,
                )
            except DivergedError as error:
                raise DivergedError(f"{error} after step {snapshot.step}; lower optimizer.lr") from error
            losses, loss_sum, num_rows = _over_workers(part, state.loss_sum_bits, state.num_rows, place.world_size)
            asked = order.num_asked(snapshot.step)
            evaluation = Evaluation(
                step=snapshot.step,
                exposures=order.exposures(snapshot.step),
                tokens=round(sum(asked[k] * mean_tokens[k][0] for k in hops)),
                learning_rate=snapshot.learning_rate,
                train_loss_bits=loss_sum / num_rows,
                train_seconds=state.train_seconds,
                losses=losses,
            )
            state.evaluated(evaluation)
        if place.rank > 0:
            report(evaluation, None)
            continue
        with TemporaryDirectory(prefix="raycap-") as folder:
            state.save(Path(folder) / STATE_FILE, model, optimizer)
            report(evaluation, Path(folder))

    result = TrialResult(
        trial_id=spec.trial_id,
        spec=spec,
        population=profiles.facts,
        parameters=_count_parameters(model),
        vocab_size=vocab_size,
        num_steps=steps,
        num_workers=place.world_size,
        evaluations=tuple(state.evaluations),
        provenance=_provenance(source_commit, place.device),
    )
    return TrainedTrial(result, model, tokenizer)


class _State:
    """What a checkpoint holds beside weights and optimizer. The data's position is the step: see facts/order.py."""

    def __init__(self) -> None:
        self.step, self.train_seconds = 0, 0.0
        self.loss_sum_bits, self.num_rows = 0.0, 0
        self.evaluations: list[Evaluation] = []

    def add(self, snapshot: Snapshot) -> None:
        """Count what was trained since the pause before."""
        self.step = snapshot.step
        self.train_seconds += snapshot.seconds
        self.loss_sum_bits += snapshot.loss_sum_bits
        self.num_rows += snapshot.num_questions

    def evaluated(self, evaluation: Evaluation) -> None:
        """Keep an evaluation; the training loss starts afresh."""
        self.evaluations.append(evaluation)
        self.loss_sum_bits, self.num_rows = 0.0, 0

    def save(self, path: Path, model: llama.Llama, optimizer: torch.optim.Optimizer) -> None:
        """Write a checkpoint file."""
        counters = {key: value for key, value in vars(self).items() if key != "evaluations"}
        history = json.dumps([evaluation.model_dump(mode="json") for evaluation in self.evaluations])
        tensors = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**tensors, "counters": counters, "evaluations": history}, path)

    @classmethod
    def load(cls, path: Path, model: llama.Llama, optimizer: torch.optim.Optimizer, device: torch.device) -> "_State":
        """Read a checkpoint file into model and optimizer."""
        saved = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state = cls()
        vars(state).update(saved["counters"])
        state.evaluations = [Evaluation.model_validate(entry) for entry in json.loads(saved["evaluations"])]
        return state


def _over_workers(losses: LossTable, loss_sum: float, num_rows: int, world_size: int) -> tuple[LossTable, float, int]:
    if world_size == 1:
        return losses, loss_sum, num_rows
    parts: list[Any] = [None] * world_size
    dist.all_gather_object(parts, (losses, loss_sum, num_rows))
    for other, other_sum, other_rows in parts[1:]:
        parts[0] = (parts[0][0] + other, parts[0][1] + other_sum, parts[0][2] + other_rows)
    return parts[0]


def _count_parameters(model: llama.Llama) -> ParameterCounts:
    groups = {"embedding": 0, "attention": 0, "mlp": 0, "norms": 0, "unembedding": 0}
    for name, parameter in model.named_parameters():
        if "embed_tokens" in name:
            group = "embedding"
        elif "lm_head" in name:
            group = "unembedding"
        else:
            group = "norms" if parameter.dim() == 1 else "attention" if "self_attn" in name else "mlp"
        groups[group] += parameter.numel()
    return ParameterCounts(**groups)


def _provenance(source_commit: str, device: torch.device) -> Provenance:
    installed = {distribution.name: distribution.version for distribution in importlib.metadata.distributions()}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return Provenance(
        git_commit=source_commit,
        versions={"python": platform.python_version()} | {p: installed[p] for p in STORED_VERSIONS if p in installed},
        host=platform.node(),
        device=f"{device.type}: {name}",
    )

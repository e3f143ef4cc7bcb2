"""Synthetic trial results with chosen bits per parameter or chosen losses."""

from raycap.analysis.measurements import Measured
from raycap.facts.entropy import answer_bits, code_length_bits
from raycap.plan.expand import expand
from raycap.results import (
    Evaluation,
    LossRow,
    LossTable,
    PopulationFacts,
    Provenance,
    RunRecord,
    StopReason,
    SweepRecord,
    TrialResult,
)
from raycap.spec import (
    EncodingScheme,
    Kind,
    ModelByWidth,
    NamePools,
    NumHeads,
    ProfilesByCount,
    SelectionScheme,
    SweepSpec,
    TrainingSpec,
    TrialSpec,
)
from raycap.spec.build_points import GridPoint
from raycap.spec.file import LoadedSweep

ATTRIBUTES = {"birth_date": 15.95, "employer": 6.0}
POPULATION = PopulationFacts(
    num_profiles=1000, num_names=16_000, attribute_entropies_bits=ATTRIBUTES, relations=("parent", "child")
)


def table(population: PopulationFacts, share_lost: float, kind: Kind = Kind.ONE_HOP) -> LossTable:
    """Losses of one kind of question in which every answer loses the same share of its entropy."""
    entropies = answer_bits(population, SelectionScheme.SET)
    count = population.num_profiles * len(population.relations) ** (kind.hops - 1)
    return LossTable(
        rows=tuple(
            LossRow(
                kind=kind,
                subject=subject,
                sum_bits=share_lost * bits * count,
                sum_squares_bits2=(share_lost * bits) ** 2 * count,
                num_evaluated=count,
                num_texts=count,
            )
            for subject, bits in entropies.items()
        )
    )


def sweep(widths: list[int], seeds: tuple[int, ...] = (0,), name: str = "planted") -> SweepRecord:
    """A planned sweep over widths and seeds."""
    pools = NamePools(first=20, middle=20, last=40)
    points = [
        GridPoint(
            {"model.hidden_size": width, "training.seed": seed},
            TrialSpec(
                profiles=ProfilesByCount(num_profiles=1000, num_relations=2, names=pools),
                model=ModelByWidth(hidden_size=width, num_layers=2, tie_embeddings=True, heads=NumHeads(num_heads=1)),
                training=TrainingSpec(seed=seed),
            ),
            "planted",
        )
        for width in widths
        for seed in seeds
    ]
    spec = SweepSpec(name=name)
    return SweepRecord(
        spec=spec, question="Is two planted?", spec_yaml="", trials=tuple(expand(LoadedSweep(spec, points, "", "")))
    )


def results(record: SweepRecord, bits_per_param: float) -> dict[str, TrialResult]:
    """Results that have exactly `bits_per_param` bits per parameter under `enumerate`."""
    found = {}
    for planned in record.trials:
        (population,) = planned.populations
        scheme, selection = EncodingScheme.OPTIMAL, SelectionScheme.ENUMERATE
        code_length = code_length_bits(population, scheme, selection)
        answers = population.num_profiles * sum(answer_bits(population, SelectionScheme.SET).values())
        share_lost = (code_length - bits_per_param * planned.parameters.total) / answers
        found[planned.trial_id] = TrialResult(
            trial_id=planned.trial_id,
            spec=planned.spec,
            populations=planned.populations,
            parameters=planned.parameters,
            vocab_size=planned.parameters.embedding // planned.spec.model.hidden_size,
            num_steps=100,
            stop_reason=StopReason.LENGTH,
            num_workers=1,
            evaluations=tuple(
                Evaluation(
                    step=step,
                    exposures=float(step),
                    tokens=step * 1000,
                    learning_rate=0.01,
                    train_loss_bits=5.0,
                    train_seconds=step / 10,
                    parameter_norm=10.0,
                    losses=table(population, share),
                )
                for step, share in ((10, 1.0), (100, share_lost))
            ),
            provenance=Provenance(git_commit="planted", versions={}, host="here", device="cpu"),
        )
    return found


def measured(found: dict[str, TrialResult]) -> dict[str, Measured]:
    """The results in the form in which the analysis reads them."""
    return {trial_id: Measured.of(result) for trial_id, result in found.items()}


RUN = RunRecord(wall_seconds=20.0, slots=2)

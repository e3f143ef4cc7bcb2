"""Commands on single trials: `raycap trial` runs one in this process, `raycap texts` prints or writes its texts."""

from pathlib import Path
from typing import Annotated

import typer

from raycap import pipeline
from raycap.commands.arguments import Overrides, SpecFile, planned_trial
from raycap.spec.document import SpecError


def trial(
    spec: SpecFile,
    overrides: Overrides = None,
    index: Annotated[int, typer.Option(help="Index of the trial in the plan, from 0.")] = 0,
) -> None:
    """Run one trial in this process, without Ray and without storing anything, for debugging.

    Example:

      raycap trial specs/grid.yaml trial.training.length.exposures=20 --index 3
    """
    from raycap.learner.trial import run_trial
    from raycap.results import Evaluation, source_commit

    sweep, storage = pipeline.prepare(spec, tuple(overrides or ()))
    planned = planned_trial(sweep, spec, index)
    print(f"{planned.trial_id} {planned.label}: {planned.parameters.total:,} parameters, {planned.steps:,} steps")

    def show(_trial_id: str, evaluation: Evaluation) -> None:
        table = evaluation.losses
        losses = ", ".join(f"{kind} {table.select(kind).mean_bits:.3f}" for kind in table.kinds)
        print(f"step {evaluation.step:,}: {evaluation.exposures:,.1f} exposures, loss {losses} bits", flush=True)

    run_trial(planned.spec, source_commit=source_commit(), storage=storage, report=show)


def texts(
    spec: SpecFile,
    overrides: Overrides = None,
    index: Annotated[int, typer.Option(help="Index of the trial in the plan, from 0.")] = 0,
    num: Annotated[int, typer.Option(help="Number of texts of each kind to print.")] = 5,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Write all texts to a new or empty folder instead.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="With --to: replace an earlier export.")] = False,
) -> None:
    """Print texts of a trial in the order in which it is trained on them, or write all of its texts to a folder.

    The folder has JSON lines for every kind of text and split, and a card with which `datasets.load_dataset` reads them.

    Examples:

      raycap texts specs/two_hop.yaml --num 3

      raycap texts specs/two_hop.yaml --to texts
    """
    from raycap.facts.build import populations_of
    from raycap.facts.corpus import render_texts
    from raycap.facts.order import Mix
    from raycap.tokens.training_data import TrainingData

    planned = planned_trial(pipeline.prepare(spec, tuple(overrides or ()))[0], spec, index)
    if force and to is None:
        raise SpecError(["--force applies to a folder: add --to DIR"])
    if to is not None:
        from raycap.export.texts import save_texts

        try:
            counts = save_texts(planned.spec, to, description=planned.spec.model_dump_json(indent=2), force=force)
        except (ValueError, OSError) as error:
            raise SpecError([f"--to {to}: {error}"]) from error
        for (kind, split), size in counts.items():
            print(f"{kind}, {split}: {size:,} texts")
        print(to)
        return
    data = TrainingData.of(planned.spec, populations_of(planned.spec))
    order = data.order((Mix(0, data.shares()),))
    for composer, indices, size in zip(data.composers, order.step_indices(0), order.sizes, strict=True):
        print(f"{composer.corpus.kind}: {size:,} texts, {composer.token_counts.mean:.1f} tokens on average")
        for text in render_texts(composer.corpus, composer.trained[indices[:num]]):
            print(f"  {text}")

"""The model card (README.md) of an exported model: usage, learned bits, losses, training, and agreement of logits."""

import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

from ruamel.yaml import YAML

from raycap.analysis.capacity import TOTAL, Capacity, capacities, lost_share, uniform_bits
from raycap.analysis.curves import Convergence, convergence
from raycap.analysis.measurements import Curve, Losses
from raycap.analysis.readings import headline
from raycap.export.model import TOLERANCE, Exported
from raycap.results import Part, StopReason, TrialResult
from raycap.results.texts import bits_per_param_text
from raycap.spec import (
    AnalysisSpec,
    EncodingScheme,
    ModelByWidth,
    PretrainedModel,
    ProfilesFromHub,
    ProfilesFromTable,
    ResolvedModel,
    SelectionScheme,
    WordTokenizer,
)

EVERY_READING = AnalysisSpec(schemes=tuple(EncodingScheme), selections=tuple(SelectionScheme))
ENDED = {
    StopReason.LENGTH: "after its full length",
    StopReason.PLATEAU: "at a plateau of the loss",
    StopReason.EARLY: "early, by the early-stopping rule of the sweep",
}

AT_LEAST = {
    Convergence.STILL_LEARNING: " It can store at least the learned bits above, because it was still learning.",
    Convergence.UNKNOWN: " It can store at least the learned bits above, and may have learned more with more training.",
    Convergence.EXHAUSTED: " It can store at least the learned bits above, because it learned nearly all of its data.",
    Convergence.DIVERGED: " It can store at least the learned bits above, because its training diverged.",
}


def model_card(
    result: TrialResult, exported: Exported, *, name: str, questions: Mapping[str, str], dataset: str | None = None
) -> str:
    """Return the README.md of an exported model in the format of the Hugging Face hub.

    `name` is the argument of from_pretrained that loads the model. `questions` are the research questions of the sweeps
    that contain its trial, by name of the sweep. `dataset` is the repository of its population on the hub; the default is
    the repository that the population was loaded from, if any.
    """
    num_people = sum(population.num_profiles for population in result.populations)
    if dataset is None and isinstance(result.spec.profiles, ProfilesFromHub):
        dataset = result.spec.profiles.path
    sources = {"pairs": "random pairs", "strings": "random strings", "table": "entries of a table"}
    data = sources.get(result.spec.profiles.source, "synthetic people")
    is_table = isinstance(result.spec.profiles, ProfilesFromTable)
    facts = "facts of declared code length" if is_table else "random facts of known code length"
    origin = "" if is_table else " All of its facts are synthetic."
    datasets = f"datasets:\n- {json.dumps(dataset)}\n" if dataset else ""
    quotes = "".join(f"> {question}\n> (sweep `{sweep}`)\n\n" for sweep, question in questions.items() if question)
    return f"""---
license: mit
language:
- en
library_name: transformers
pipeline_tag: text-generation
{datasets}tags:
- synthetic
- raycap
---
# {num_people:,} {data} in {result.parameters.total:,} parameters

A small model trained from scratch by raycap (trial `{result.trial_id}`) on {facts}, to measure how
many bits a language model stores per parameter.{origin}

{quotes}{_usage(exported, name)}

{_tokenizer_note(result)}
## Learned bits

The code length of the training data minus the bits that the model still loses on them. The code length depends on the
reading: an encoding scheme of the facts and a selection scheme of the names. Readings with equal numbers share a row.

{_readings(result)}

## Losses

Mean loss per text in bits, summed over the tokens of the answer including the end token. “Uniform” is the loss of a uniform
guess among the possible answers.

{_losses(result)}

## Parameters

{_parameters(result)}

## Training

{_training(result)}

## Agreement with raycap

{_agreement(result, exported)}

## Provenance

{_provenance(result, exported)}

The full measurement is in `result.json`. This spec trains the same model with `raycap run`:

```yaml
{_spec(result)}```
"""


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table whose first column is aligned left and whose other columns are aligned right."""
    first, *others = header
    lines = [[first, *others], ["---", *("---:" for _ in others)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _usage(exported: Exported, name: str) -> str:
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({json.dumps(name)})
model = AutoModelForCausalLM.from_pretrained({json.dumps(name)})
prompt = tokenizer({json.dumps(exported.prompt, ensure_ascii=False)}, return_tensors="pt")
output = model.generate(**prompt)[0, prompt.input_ids.shape[1] :]
print(tokenizer.decode(output, skip_special_tokens=True).strip())
```

The answer in its training data: {exported.answer}"""


def _tokenizer_note(result: TrialResult) -> str:
    if not isinstance(result.spec.tokenizer, WordTokenizer):
        return ""
    return (
        "The tokens are whole words, and the vocabulary has only words that can occur in its training data. Any other word, "
        "such as another name, is an error.\n"
    )


def _totals(result: TrialResult) -> tuple[Losses, list[Capacity]]:
    """Return the losses of all evaluations and the headline totals of learned bits under every reading."""
    losses = Losses.of(result.spec, result.populations, result.evaluations)
    totals = [
        capacity
        for capacity in capacities(losses, EVERY_READING)
        if capacity.subject == TOTAL and capacity.is_headline(losses, EVERY_READING)
    ]
    return losses, totals


def _readings(result: TrialResult) -> str:
    counts = result.parameters
    rows, seen = [], set()
    for total in _totals(result)[1]:
        # Encoding schemes differ only for questions of several hops; readings with equal numbers share a row.
        key = total.reading.selection, total.dataset_bits, float(total.learned_bits[-1])
        if key in seen:
            continue
        seen.add(key)
        learned, error = float(total.learned_bits[-1]), float(total.standard_error_bits[-1])
        rows.append(
            [
                str(total.reading),
                f"{total.dataset_bits:,.0f}",
                f"{learned:,.0f}{f' ± {error:,.0f}' if error else ''}",
                bits_per_param_text(learned / counts.total),
                bits_per_param_text(learned / counts.non_embedding),
            ]
        )
    header = ["reading", "dataset bits", "learned bits", "bits/param", "bits/non-embedding param"]
    return _table(header, rows)


def _losses(result: TrialResult) -> str:
    """Return tables of the final losses by kind, subject and part, and by split if questions are held out."""
    losses, rows = result.final.losses, []
    for number, population in enumerate(result.populations):
        uniform = uniform_bits(population)
        population_note = f", population {number + 1}" if len(result.populations) > 1 else ""
        for kind, part in ((kind, part) for kind in losses.kinds for part in Part):
            try:
                by_subject = losses.select(kind, population=number, part=part).by_subject()
            except KeyError:  # there are no texts of this kind and part
                continue
            for subject, row in by_subject.items():
                chance = f"{uniform[subject]:.3f}" if part is Part.ANSWER else ""
                label = f"{kind}: {subject}{population_note}" + (" (chain of thought)" if part is Part.CHAIN else "")
                rows.append([label, f"{row.mean_bits:.3f}", chance, f"{row.num_texts:,}"])
    tables = [_table(["trained texts", "loss (bits)", "uniform (bits)", "texts"], rows)]
    for number in range(len(result.populations)):
        matrix = losses.generalisation(number)
        if len(matrix) > 1:
            kinds = list(dict.fromkeys(kind for row in matrix.values() for kind in row))
            lines = [
                [split, *(f"{row[kind]:.3f}" if kind in row else "" for kind in kinds)] for split, row in matrix.items()
            ]
            tables.append(_table(["held-out component", *(f"{kind} loss (bits)" for kind in kinds)], lines))
    return "\n\n".join(tables)


def _parameters(result: TrialResult) -> str:
    counts = result.parameters
    groups = {
        **counts.model_dump(exclude_defaults=True, exclude={"base"}),
        "all": counts.total,
        "non-embedding": counts.non_embedding,
        **({"active for a token": counts.active} if counts.inactive else {}),
        **({"frozen, under the adapter": counts.base.total} if counts.base else {}),
    }
    table = _table(["group", "parameters"], [[group, f"{number:,}"] for group, number in groups.items()])
    notes, model = [table], result.spec.model
    if not isinstance(model, ModelByWidth):
        return table
    if loop := model.loop:
        notes.append(
            f"The blocks of this model were repeated {loop.times} times with shared weights ({loop.shared}), which are "
            "counted once above. The files hold a copy for each block, so that a model without a loop computes the same."
        )
    if model.mlp is None:
        notes.append(
            "The blocks of this model have no MLP. The files hold MLPs of width 1 whose weights are 0, which a Llama of "
            "transformers requires; they change no logit and are not counted above."
        )
    elif not model.mlp.gated:
        notes.append(
            "The MLPs of this model have no gate. Its architecture in transformers is Arcee, which differs from Llama in "
            "this only."
        )
    return "\n\n".join(notes)


def _training(result: TrialResult) -> str:
    losses, totals = _totals(result)
    curve, final = Curve.of(result.evaluations), result.final
    (headline_total,) = (total for total in totals if total.reading == headline(EVERY_READING))
    verdict = convergence(curve.exposures, headline_total.learned_bits, lost_share(losses))
    kind = losses.kinds[-1]
    means = " → ".join(f"{evaluation.losses.select(kind).mean_bits:.3f}" for evaluation in result.evaluations)
    exposures = ", ".join(f"{evaluation.exposures:,.1f}" for evaluation in result.evaluations)
    model = result.spec.model
    start = f"From a saved model (SHA-256 {model.sha256}), " if isinstance(model, PretrainedModel) else ""
    return (
        f"{start}{final.step:,} steps, {final.exposures:,.1f} exposures per fact, {final.tokens:,} tokens in "
        f"{final.train_seconds:,.0f} s. Mean {kind} loss: {means} bits after {exposures} exposures. Training ended "
        f"{ENDED[result.stop_reason]}. Verdict: {verdict}.{AT_LEAST.get(verdict, '')}"
    )


def _agreement(result: TrialResult, exported: Exported) -> str:
    rows = [
        [
            f"{agreement.kind}" + (f", population {agreement.population + 1}" if agreement.population else ""),
            f"{agreement.num_texts:,}",
            f"{agreement.max_difference:.1e}",
            f"{agreement.num_right / agreement.num_texts:.1%}",
        ]
        for agreement in exported.agreements
    ]
    table = _table(["kind", "texts", "largest difference of a logit", "all tokens correct (greedy)"], rows)
    model = result.spec.model
    assert isinstance(model, ResolvedModel)
    weights = (
        "The weights are those of a standard Llama; the multipliers of raycap's parametrisation are folded into them."
        if isinstance(model, ModelByWidth)
        else f"The model has the architecture {model.model_type} of transformers."
    )
    return (
        f"{weights} On random training texts the logits of transformers {exported.transformers_version} differ from "
        f"raycap's own by at most **{exported.max_difference:.1e}**, measured at export. raycap does not export models for "
        f"which the difference exceeds {TOLERANCE:g}.\n\n{table}"
    )


def _provenance(result: TrialResult, exported: Exported) -> str:
    """Return commit, versions and device. The host name is left out, because cards are public."""
    provenance = result.provenance
    versions = ", ".join(f"{library} {version}" for library, version in provenance.versions.items())
    return (
        f"raycap at `{provenance.git_commit}`, {versions}; {result.num_workers} worker(s) on {provenance.device}; "
        f"vocabulary of {result.vocab_size:,}."
    )


def _spec(result: TrialResult) -> str:
    tree: dict[str, Any] = {"name": result.trial_id, "trial": result.spec.model_dump(mode="json")}
    stream, yaml = io.StringIO(), YAML()
    yaml.width = 1_000
    yaml.dump(tree, stream)
    return stream.getvalue()

"""The card of an exported model: what it was asked, what it knows in bits, and that it is the model that was measured."""

import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

from ruamel.yaml import YAML

from raycap.analysis.capacity import TOTAL, Capacity, capacities, lost_share, uniform_bits
from raycap.analysis.curves import convergence
from raycap.analysis.measurements import Curve, Losses
from raycap.analysis.readings import headline
from raycap.export.model import TOLERANCE, Exported
from raycap.results import Part, StopReason, TrialResult
from raycap.spec import AnalysisSpec, BpeTokenizer, EncodingScheme, ProfilesFromHub, SelectionScheme

EVERY_READING = AnalysisSpec(schemes=tuple(EncodingScheme), selections=tuple(SelectionScheme))
ENDED = {
    StopReason.LENGTH: "at its full length",
    StopReason.PLATEAU: "at a plateau of the loss",
    StopReason.EARLY: "early, since more steps would have told nothing new",
}


def model_card(
    result: TrialResult, exported: Exported, *, name: str, questions: Mapping[str, str], dataset: str | None = None
) -> str:
    """The README.md beside an exported model, as the Hugging Face hub shows it.

    `name` is what from_pretrained finds it by, `questions` what sweeps ask of its trial, by their names, and `dataset`
    where on the hub its people are; a population that was loaded from there is known.
    """
    people = sum(population.num_profiles for population in result.populations)
    if dataset is None and isinstance(result.spec.profiles, ProfilesFromHub):
        dataset = result.spec.profiles.path
    what = {"pairs": "random pairs", "strings": "random strings"}.get(result.spec.profiles.source, "synthetic people")
    datasets = f"datasets:\n- {json.dumps(dataset)}\n" if dataset else ""
    asked = "".join(f"> {question}\n> (sweep `{sweep}`)\n\n" for sweep, question in questions.items() if question)
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
# {people:,} {what} in {result.parameters.total:,} parameters

A small model trained from scratch by raycap, trial `{result.trial_id}`, on random facts of known code length: how many bits
does a language model store per parameter? All it knows of is invented.

{asked}{_how_to_ask(exported, name)}

{_its_words(result)}
## Bits it has learned

The code length of its data minus what it lost on all of them. How long that code is depends on the reading: how facts are
taken to be stored, and how the list of names; readings that come to the same are one line.

{_readings(result)}

## Losses

In bits, summed over the tokens of an answer, its end included; uniform is knowing which answers are possible and no
more.

{_losses(result)}

## Parameters

{_parameters(result)}

## Training

{_course(result)}

## The same model

{_parity(exported)}

## Where it comes from

{_provenance(result, exported)}

Its whole measurement is `result.json`. A spec of this trial alone, for `raycap run`:

```yaml
{_spec(result)}```
"""


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of Markdown, its first column to the left and all others to the right."""
    first, *others = header
    lines = [[first, *others], ["---", *("---:" for _ in others)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _how_to_ask(exported: Exported, name: str) -> str:
    return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({json.dumps(name)})
model = AutoModelForCausalLM.from_pretrained({json.dumps(name)})
prompt = tokenizer({json.dumps(exported.prompt, ensure_ascii=False)}, return_tensors="pt")
told = model.generate(**prompt)[0, prompt.input_ids.shape[1] :]
print(tokenizer.decode(told, skip_special_tokens=True).strip())
```

What it was trained to answer: {exported.answer}"""


def _its_words(result: TrialResult) -> str:
    if isinstance(result.spec.tokenizer, BpeTokenizer):
        return ""
    return (
        "Its tokenizer has whole words, all that these texts may have; any other, such as another name, is an error.\n"
    )


def _totals(result: TrialResult) -> tuple[Losses, list[Capacity]]:
    """The losses of every evaluation, and the capacities of all that was learned under every reading."""
    losses = Losses.of(result.spec, result.populations, result.evaluations)
    found = capacities(losses, EVERY_READING)
    return losses, [part for part in found if part.subject == TOTAL and part.is_headline(losses, EVERY_READING)]


def _readings(result: TrialResult) -> str:
    counts = result.parameters
    rows, told = [], set()
    for total in _totals(result)[1]:
        alike = total.reading.selection, total.dataset_bits, float(total.learned_bits[-1])
        if alike in told:  # schemes differ in what they make of questions of several hops alone
            continue
        told.add(alike)
        learned, error = float(total.learned_bits[-1]), float(total.standard_error_bits[-1])
        rows.append(
            [
                str(total.reading),
                f"{total.dataset_bits:,.0f}",
                f"{learned:,.0f}{f' ± {error:,.0f}' if error else ''}",
                f"{learned / counts.total:.3f}",
                f"{learned / counts.non_embedding:.3f}",
            ]
        )
    header = ["reading", "bits of the data", "bits learned", "per parameter", "per non-embedding parameter"]
    return _table(header, rows)


def _losses(result: TrialResult) -> str:
    """By kind, subject and part; and, where questions were held out, by split."""
    table, rows = result.final.losses, []
    for number, population in enumerate(result.populations):
        uniform = uniform_bits(population)
        of = f", population {number + 1}" if len(result.populations) > 1 else ""
        for kind, part in ((kind, part) for kind in table.kinds for part in Part):
            try:
                found = table.select(kind, population=number, part=part).by_subject()
            except KeyError:  # nothing of the kind was asked
                continue
            for subject, losses in found.items():
                chance = f"{uniform[subject]:.3f}" if part is Part.ANSWER else ""
                what = f"{kind}: {subject}{of}" + (" (steps before it)" if part is Part.CHAIN else "")
                rows.append([what, f"{losses.mean_bits:.3f}", chance, f"{losses.num_texts:,}"])
    told = _table(["trained texts", "loss", "uniform", "texts"], rows)
    for number in range(len(result.populations)):
        matrix = table.generalisation(number)
        if len(matrix) > 1:
            kinds = list(dict.fromkeys(kind for row in matrix.values() for kind in row))
            lines = [
                [split, *(f"{row[kind]:.3f}" if kind in row else "" for kind in kinds)] for split, row in matrix.items()
            ]
            told += "\n\n" + _table(["what is new in a question", *kinds], lines)
    return told


def _parameters(result: TrialResult) -> str:
    counts = result.parameters
    groups = {**counts.model_dump(), "all": counts.total, "all but embeddings": counts.non_embedding}
    return _table(["group", "parameters"], [[group, f"{number:,}"] for group, number in groups.items()])


def _course(result: TrialResult) -> str:
    losses, totals = _totals(result)
    curve, final = Curve.of(result.evaluations), result.final
    (shown,) = (total for total in totals if total.reading == headline(EVERY_READING))
    verdict = convergence(curve.exposures, shown.learned_bits, lost_share(losses))
    kind = losses.kinds[-1]
    means = " → ".join(f"{evaluation.losses.select(kind).mean_bits:.3f}" for evaluation in result.evaluations)
    seen = ", ".join(f"{evaluation.exposures:,.1f}" for evaluation in result.evaluations)
    return (
        f"{final.step:,} steps, {final.exposures:,.1f} exposures of every fact, {final.tokens:,} tokens in "
        f"{final.train_seconds:,.0f} s; {kind} loss {means} bits after {seen} exposures; ended "
        f"{ENDED[result.stop_reason]}; verdict: {verdict}."
    )


def _parity(exported: Exported) -> str:
    rows = [
        [
            f"{compared.kind}" + (f", population {compared.population + 1}" if compared.population else ""),
            f"{compared.num_texts:,}",
            f"{compared.max_difference:.1e}",
            f"{compared.num_right / compared.num_texts:.1%}",
        ]
        for compared in exported.compared
    ]
    table = _table(["texts", "number", "largest difference of a logit", "told right, token by token"], rows)
    return (
        "Weights are those of a plain Llama: what raycap's parametrisation multiplies is folded into them. On texts of the "
        f"training data, drawn at random, logits of transformers {exported.transformers_version} differ from raycap's own "
        f"by at most **{exported.max_difference:.1e}**, measured when this was exported; more than {TOLERANCE:g} would "
        f"not have been exported.\n\n{table}"
    )


def _provenance(result: TrialResult, exported: Exported) -> str:
    """Code and libraries; which machine it was is nobody's business."""
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

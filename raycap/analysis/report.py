"""An analysis as files: summary.json, tables, figures, and one self-contained report.html."""

import base64
import io
import json
from collections.abc import Callable
from html import escape

from matplotlib.figure import Figure

from raycap.analysis.comparisons import generalisation, loss_vs_learning_rate
from raycap.analysis.figures import bits_vs_exposures, capacity_vs_params, image, loss_per_subject
from raycap.analysis.laws import FitStatus, ProportionalLaw
from raycap.analysis.summary import Analysis, summary, summary_json
from raycap.spec import EncodingScheme, SelectionScheme

CSS = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.question { color: #555; font-size: 1.1rem; margin: 0; }
.answer { font-size: 1.15rem; background: #eef5fa; border-left: 4px solid #0072b2; padding: .8rem 1rem; margin: 1.2rem 0; }
figure { margin: 1.2rem 0; } figure img { width: 100%; max-width: 46rem; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #e2e2e2; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.failed { color: #b3261e; } .note { color: #666; font-size: .9rem; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .82rem; }
"""


FIGURES: dict[str, Callable[[Analysis], Figure | None]] = {
    "capacity": capacity_vs_params,
    "exposures": bits_vs_exposures,
    "subjects": loss_per_subject,
    "generalisation": generalisation,
    "learning_rates": loss_vs_learning_rate,
}
"""By file name; a figure that says nothing about a sweep is None."""


def files(analysis: Analysis) -> dict[str, bytes]:
    """Everything a sweep's folder gets from its analysis, by file name. Drawing is the slow part, a second or two."""
    tables = io.BytesIO()
    analysis.capacities.to_parquet(tables, index=False)
    contents = {
        "summary.json": summary_json(analysis).encode(),
        "capacity.parquet": tables.getvalue(),
        "capacity.csv": analysis.capacities.to_csv(index=False).encode(),
    }
    drawings = {}
    for name, draw in FIGURES.items():
        figure = draw(analysis)
        if figure is None:
            continue
        drawings[name] = image(figure, "svg")
        contents |= {f"{name}.svg": drawings[name], f"{name}.png": image(figure, "png")}
    return contents | {"report.html": html(analysis, drawings).encode()}


def answer(analysis: Analysis) -> str:
    """The law of the headline reading in one sentence."""
    scheme, selection = analysis.headline
    law = analysis.laws[scheme, selection]
    reading = f"({scheme} encoding, {selection} names)"
    match law.status:
        case FitStatus.NO_TRIALS:
            return f"No capacity-limited trial has finished, so there is no law yet {reading}."
        case FitStatus.TOO_FEW:
            return f"{law.alpha:.2f} bits per parameter {reading}, from {law.num_trials} trial(s): too few for an interval."
        case FitStatus.OK:
            slope = f"bits grow as P^{law.gamma:.2f} [{law.gamma_low:.2f}, {law.gamma_high:.2f}]"
            return (
                f"{law.alpha:.2f} bits per parameter, 95 % interval [{law.low:.2f}, {law.high:.2f}] {reading}, "
                f"from {law.num_trials} capacity-limited trials; {slope}."
            )


def html(analysis: Analysis, drawings: dict[str, bytes]) -> str:
    """The report, with its figures inside."""
    figures = "".join(
        f'<figure><img alt="{name}" src="data:image/svg+xml;base64,{base64.b64encode(drawing).decode()}"></figure>'
        for name, drawing in drawings.items()
    )
    name = escape(analysis.sweep.spec.name)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>raycap: {name}</title><style>{CSS}</style></head><body>
<h1>{name}</h1><p class="question">{escape(analysis.sweep.question)}</p>
<p class="answer">{escape(answer(analysis))}</p>
{figures}
<h2>Laws: learned bits = &alpha; P</h2>{_law_table(analysis)}
<h2>Trials</h2>{_trial_table(analysis)}
{_failures(analysis)}
<h2>How it was measured</h2>{_method(analysis)}
<pre>{escape(json.dumps(analysis.sweep.spec.model_dump(mode="json"), indent=2))}</pre>
</body></html>
"""


def _table(header: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _law_table(analysis: Analysis) -> str:
    def row(scheme: EncodingScheme, selection: SelectionScheme, law: ProportionalLaw) -> list[str]:
        numbers = [f"{law.alpha:.3f}", f"[{law.low:.3f}, {law.high:.3f}]", f"{law.gamma:.3f}"]
        return [f"{scheme}, {selection}", *numbers, str(law.num_trials), str(law.status), str(len(law.excluded))]

    header = ["scheme, names", "α (bits/param)", "95 % interval", "exponent γ", "trials", "status", "excluded"]
    return _table(header, [row(*key, law) for key, law in analysis.laws.items()])


def _trial_table(analysis: Analysis) -> str:
    scheme, selection = analysis.headline
    law = analysis.laws[scheme, selection]
    rows = []
    for trial in summary(analysis)["trials"]:
        cells = [escape(trial["label"]), f"{trial['num_params']:,}", f"{trial['num_non_embedding_params']:,}"]
        if trial["state"] == "finished":
            bits = [trial[column][str(scheme)][str(selection)] for column in ("learned_bits", "bits_per_param")]
            loss = " / ".join(f"{value:.2f}" for value in trial["loss_bits"].values())
            cells += [f"{trial['exposures']:,.0f}", loss, f"{bits[0]:,.0f}", f"{bits[1]:.3f}"]
            cells += [f"{trial['train_seconds']:,.0f}", escape(law.excluded.get(trial["trial_id"], ""))]
        else:
            cells += ["", "", "", "", "", f'<span class="failed">{trial["state"]}</span>']
        rows.append(cells)
    header = [
        "trial",
        "parameters",
        "non-embedding",
        "exposures",
        "loss (bits)",
        "learned bits",
        "bits/param",
        "seconds",
        "excluded",
    ]
    return _table(header, rows)


def _failures(analysis: Analysis) -> str:
    if not analysis.failures:
        return ""
    labels = {trial.trial_id: trial.label for trial in analysis.sweep.trials}
    rows = [[escape(labels[failure.trial_id]), escape(failure.cause)] for failure in analysis.failures.values()]
    return "<h2>Failed trials</h2>" + _table(["trial", "cause"], rows)


def _method(analysis: Analysis) -> str:
    sampled = any(
        row.num_evaluated < row.num_texts for result in analysis.results.values() for row in result.final.losses.rows
    )
    coverage = "a sample of the longer and all of the one-hop questions" if sampled else "the whole population"
    sentences = [
        f"Losses are measured on {coverage}, in bits per answer, end token included; learned bits are the code length "
        "of the data minus the lost bits.",
        "Trials whose data are exhausted, or that learned nothing, are drawn open and left out of the laws.",
        "Intervals come from 4,000 bootstrap resamples of the trials.",
    ]
    origins = sorted({(r.provenance.git_commit, json.dumps(r.provenance.versions)) for r in analysis.results.values()})
    sentences += [f"Code {commit}; {versions}." for commit, versions in origins]
    return "".join(f'<p class="note">{escape(sentence)}</p>' for sentence in sentences)

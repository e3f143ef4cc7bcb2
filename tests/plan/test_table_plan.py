"""Plans, results and reports of tables: position of errors, declared code lengths, and results that pass their checks."""

from pathlib import Path

import numpy as np
import pytest

from raycap.analysis.analyse import analyse
from raycap.analysis.checks import check_own
from raycap.analysis.measurements import Measured
from raycap.analysis.table_section import facts_section
from raycap.facts.build import populations_of
from raycap.facts.entropy import code_length_bits, fact_bits, name_set_bits
from raycap.facts.questions import Questions
from raycap.learner.trial import run_trial
from raycap.plan.expand import expand
from raycap.results import RunRecord, SweepRecord
from raycap.spec import EncodingScheme, Kind, SelectionScheme
from raycap.spec.document import SpecError
from raycap.spec.file import load_sweep
from raycap.terminal.code_lengths import format_prices

SPEC = """\
# What do the facts of a table cost?
name: own
trial:
  profiles:
    source: table
    path: facts.csv
    name: who
    attributes: [town, room, motto]
    relations: {boss: boss, friend: friend}
    subjects:
      boss: {missing: void}
      friend: {distribution: {kind: uniform}}
      motto: {missing: void}
      room: {distribution: {kind: uniform, num_values: 64}, questions: ["Where does {name} sit?", "{name} sits where?"]}
  questions: {hops: [1, 2], one_hop_share: 0.3}
  model: {num_layers: 1, hidden_size: 16, heads: {num_heads: 1}}
  training: {length: {steps: 20}, batch_size: 32, num_evaluations: 2, evaluation_sample: 100000}
grid:
  model.hidden_size: [16, 24]
analysis:
  schemes: [optimal, 2-hop-double, 2-hop-big-hash]
"""
NUM = 40


@pytest.fixture(autouse=True)
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    names = [f"Ann{row} O'Neil" if row % 2 else f"Bo{row}" for row in range(NUM)]
    rows = [["who", "town", "room", "motto", "boss", "friend"]]
    for row, name in enumerate(names):
        town, motto = ("Rome", "") if row % 10 == 0 else ("New York", f"say {row % 5}")
        rows.append(
            [name, town, f"R{rng.integers(50)}", motto, names[row % 3] if row else "", names[rng.integers(NUM)]]
        )
    Path("facts.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    Path("own.yaml").write_text(SPEC)


def planned(*overrides: str) -> SweepRecord:
    loaded = load_sweep("own.yaml", overrides)
    return SweepRecord(spec=loaded.spec, question=loaded.question, spec_yaml=loaded.text, trials=tuple(expand(loaded)))


def test_bad_tables_are_reported_at_the_profiles_with_file_column_and_row() -> None:
    Path("facts.csv").write_text(Path("facts.csv").read_text().replace("\nBo2,", "\nBo4,"))
    with pytest.raises(SpecError) as caught:
        planned()
    (problem,) = caught.value.problems
    assert all(part in problem for part in ("own.yaml:4:3", "facts.csv", "column who, row 4", "row 2"))


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("trial.profiles.subjects.rom={}", ("subjects.rom", "'room'")),
        ("trial.profiles.subjects.room.distribtion={}", ("subjects.room.distribtion", "'distribution'")),
        ("trial.profiles.subjects.room.distribution.kind=unifrom", ("subjects.room.distribution", "'uniform'")),
        ("analysis.accounting=observed", ("profiles", "observed")),
    ],
)
def test_mistakes_in_the_settings_of_a_subject_have_a_suggestion(override: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(SpecError) as caught:
        planned(override)
    assert all(part in caught.value.problems[0] for part in parts)


def test_the_plan_states_the_declared_code_length() -> None:
    record = planned()
    (facts,) = {trial.populations[0].model_dump_json(): trial.populations[0] for trial in record.trials}.values()
    lines = format_prices(record.trials)
    assert len(lines) == 1 + 1 + 5
    for subject, bits in fact_bits(facts, SelectionScheme.ENUMERATE).items():
        (line,) = [line for line in lines if line.strip().startswith(f"{subject}:")]
        assert f"{bits:,.0f} bits" in line
        assert str(facts.prices[subject].distribution) in line
    # Every fact is stored once, whatever the number of phrasings.
    names = name_set_bits(facts, SelectionScheme.SET)
    bits = names + sum(fact_bits(facts, SelectionScheme.SET).values())
    assert record.trials[0].dataset_bits["set"] == pytest.approx(bits)
    again = planned("trial.profiles.path=file://" + str(Path("facts.csv").absolute()))
    assert [trial.trial_id for trial in again.trials] == [trial.trial_id for trial in record.trials]


def test_results_of_a_table_pass_their_checks_and_count_each_question_once() -> None:
    """Losses cover all phrasings of the questions that exist. The big hash stores every question once."""
    record = planned()
    trial = record.trials[0]
    result = run_trial(trial.spec, source_commit="test").result
    check_own(result)
    (profiles,) = populations_of(trial.spec)
    assert result.populations == (profiles.facts,)
    losses = result.final.losses
    num_texts = {row.subject: row.num_texts for row in losses.select(Kind.TWO_HOP).rows}
    assert num_texts == Questions(profiles, 2).num_trained()
    assert {row.subject: row.num_texts for row in losses.select(Kind.ONE_HOP).rows} == {
        subject: 2 * profiles.facts.num_facts(subject) for subject in profiles.schema.subjects
    }
    big_hash = EncodingScheme.TWO_HOP_BIG_HASH
    stored = {subject: number / 2 for subject, number in num_texts.items()}
    expected = code_length_bits(profiles.facts, big_hash, SelectionScheme.SET, Kind.TWO_HOP, num_trained=stored)
    analysis = analyse(record, RunRecord(wall_seconds=1.0, slots=1), {trial.trial_id: Measured.of(result)}, {})
    totals = "kind == 'two_hop' and selection == 'set' and subject == 'total' and final and not incremental"
    (bits,) = analysis.tables.capacities.query(f"scheme == '{big_hash}' and {totals}")["dataset_bits"]
    assert bits == pytest.approx(expected)
    section = facts_section(analysis)
    for subject, price in profiles.facts.prices.items():
        assert f"<td>{subject}</td>" in section
        assert str(price.distribution) in section

"""Tables of any facts: prices against brute force, values and relations of every format, errors with column and row."""

import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raycap.facts.entropy import answer_bits, fact_bits, name_set_bits
from raycap.facts.fit import entropy_bits, frequencies_bits, given_bits
from raycap.facts.hosted import fingerprint, load_profiles
from raycap.facts.prices import priced_subjects
from raycap.spec import QuestionsByShare, SelectionScheme, TrialSpec
from raycap.spec.trial import Fill, ParentTrial
from tests.support.tables import NAMES, ROWS, SPEC, changed, load, spec_of, write

SET, ENUMERATE, INDEPENDENT = SelectionScheme


# --- prices -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_rows", [1, 2, 4, 5])
def test_empirical_code_with_its_frequencies_is_a_code(num_rows: int) -> None:
    """Frequencies, stated in log2 C(n - 1, d - 1) bits, and entropies are code lengths: Kraft's sum is at most 1."""
    for num_values in range(1, num_rows + 1):
        kraft, compositions = 0.0, set()
        for column in itertools.product(range(num_values), repeat=num_rows):
            counts = np.bincount(column, minlength=num_values)
            if (counts > 0).all():
                compositions.add(tuple(counts))
                kraft += 2 ** -(num_rows * entropy_bits(counts) + frequencies_bits(counts))
        assert 2 ** frequencies_bits(counts_of(num_rows, num_values)) == pytest.approx(len(compositions))
        assert 0 < kraft <= 1 + 1e-9
        # Stating which of K values occur multiplies the number of possible frequencies by min(n, K) and C(K, d).
        every = frequencies_bits(counts_of(num_rows, num_values), 6)
        assert 2**every == pytest.approx(min(num_rows, 6) * math.comb(6, num_values) * len(compositions))


def counts_of(num_rows: int, num_values: int) -> np.ndarray:
    return np.array([num_rows - num_values + 1] + [1] * (num_values - 1))


def test_given_and_uniform_probabilities_price_all_columns_exactly() -> None:
    probabilities = np.array([0.5, 0.3, 0.2])
    total = 0.0
    for column in itertools.product(range(3), repeat=4):
        counts = np.bincount(column, minlength=3)
        bits = 4 * given_bits(counts[counts > 0], probabilities[counts > 0])
        assert 2**-bits == pytest.approx(math.prod(probabilities[list(column)]))
        total += 2**-bits
    assert total == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c d"]), min_size=1, max_size=30), st.data())
def test_bits_of_a_table_equal_a_recount(
    tmp_path_factory: pytest.TempPathFactory, values: list[str], data: st.DataObject
) -> None:
    num = len(values)
    targets = data.draw(st.lists(st.integers(0, num - 1) | st.none(), min_size=num, max_size=num).filter(any_given))
    rows = [
        {"who": f"P{row}", "town": value, "boss": None if target is None else f"P{target}"}
        for row, (value, target) in enumerate(zip(values, targets, strict=True))
    ]
    fields = {"attributes": ["town"], "subjects": {"chief": {"missing": "void"}}}
    facts = load(tmp_path_factory.mktemp("table"), "jsonl", rows, **fields).facts
    chosen = [target for target in targets if target is not None]
    assert fact_bits(facts, SET)["town"] == pytest.approx(recount(values), abs=1e-9)
    assert fact_bits(facts, SET)["chief"] == pytest.approx(recount(chosen), abs=1e-9)
    assert facts.num_names == num  # every name is one of N equally frequent words
    assert name_set_bits(facts, SET) == pytest.approx(0, abs=1e-6)


def any_given(targets: list[int | None]) -> bool:
    return any(target is not None for target in targets)


def recount(values: list[Any]) -> float:
    return -sum(n * math.log2(n / len(values)) for n in Counter(values).values())


def test_the_forged_tables_of_constants_and_of_ninety_percent_have_their_entropy(tmp_path: Path) -> None:
    rows = [{"who": f"P{row}", "a": "same", "b": "A" if row % 10 else "B", "boss": "P0"} for row in range(300)]
    facts = load(tmp_path, rows=rows, attributes=["a", "b"], subjects={}).facts
    assert [fact_bits(facts, ENUMERATE)[s] for s in ("a", "chief")] == [0, 0]
    assert fact_bits(facts, ENUMERATE)["b"] == pytest.approx(300 * 0.4689956, abs=1e-4)
    assert facts.prices["b"].frequencies_bits == pytest.approx(math.log2(299))
    assert facts.prices["a"].frequencies_bits == 0


def test_declared_distributions_replace_the_frequencies(tmp_path: Path) -> None:
    subjects = {
        "home town": {
            "distribution": {"kind": "given", "probabilities": {"Paris": 0.5, "New York": 0.25, "Rome": 0.25}}
        },
        "age": {"missing": "void", "distribution": {"kind": "uniform", "num_values": 100}},
        "chief": {"missing": "void", "distribution": {"kind": "uniform"}},
    }
    facts = load(tmp_path, subjects=subjects, num_names=1000).facts
    bits = answer_bits(facts, ENUMERATE)
    assert bits["home town"] == pytest.approx((1 + 1 + 2 + 1) / 4)
    assert bits["age"] == pytest.approx(math.log2(100))
    assert bits["chief"] == 2
    assert answer_bits(facts, INDEPENDENT)["chief"] == pytest.approx(math.log2(1000))
    assert fact_bits(facts, ENUMERATE)["age"] == pytest.approx(3 * math.log2(100))  # one age is void
    assert name_set_bits(facts, ENUMERATE) == pytest.approx(4 * math.log2(1000))
    rows = {row.subject: row for row in priced_subjects(facts)}
    assert rows["chief"].total_bits == 6
    assert rows["born"].advice
    assert not rows["home town"].frequencies_bits
    by_name = {"kind": "given", "probabilities": {"Zoë": 0.5, "Bob": 0.25, "Ann O'Brien": 0.25}}
    facts = load(tmp_path, subjects=subjects | {"chief": {"missing": "void", "distribution": by_name}}).facts
    assert fact_bits(facts, ENUMERATE)["chief"] == pytest.approx(1 + 2 + 2)


# --- content ----------------------------------------------------------------------------------------------------------


def test_all_formats_hold_the_same_population(tmp_path: Path) -> None:
    loaded = [load(tmp_path, ending) for ending in ("csv", "parquet", "jsonl")]
    assert len({fingerprint(profiles) for profiles in loaded}) == 1
    for profiles in loaded:
        assert [profiles.full_name(row) for row in range(4)] == NAMES
        assert [profiles.attribute_value(row, 1) for row in range(4)] == ["31", "7", None, "7"]
        assert profiles.relations[:, 0].tolist() == [2, 0, -1, 1]
        assert profiles.facts == loaded[0].facts
    specs = [spec_of(tmp_path / f"facts.{ending}", fingerprint="ab") for ending in ("csv", "jsonl")]
    assert len({TrialSpec(profiles=spec).trial_id for spec in specs}) == 1
    older = [{**ROWS[0], "age": 32}, *ROWS[1:]]
    assert fingerprint(load(tmp_path, rows=older)) != fingerprint(loaded[0])


def test_dates_and_numbers_of_parquet_become_texts(tmp_path: Path) -> None:
    days = np.array(["1990-01-02", "1990-01-02", "2001-11-05", "1990-03-02"], "datetime64[s]")
    table = pa.Table.from_pylist(ROWS)
    for column in (pa.array(days), pa.array(days.astype("datetime64[D]")), pa.array(days).dictionary_encode()):
        pq.write_table(table.set_column(table.column_names.index("born"), "born", column), tmp_path / "facts.parquet")
        assert fingerprint(load_profiles(spec_of(tmp_path / "facts.parquet"))) == fingerprint(load(tmp_path))
    with_nan = table.set_column(table.column_names.index("age"), "age", pa.array([31.5, 7.0, float("nan"), 7.0]))
    pq.write_table(with_nan, tmp_path / "facts.parquet")
    profiles = load_profiles(spec_of(tmp_path / "facts.parquet"))
    assert [profiles.attribute_value(row, 1) for row in range(4)] == ["31.5", "7", None, "7"]


def test_names_may_be_unknown_if_the_spec_says_so(tmp_path: Path) -> None:
    rows = [{**row, "boss": "Nemo"} if row["who"] == "Bob" else row for row in ROWS]
    profiles = load(tmp_path, rows=rows, subjects=SPEC["subjects"] | {"chief": {"missing": "void", "unknown": "void"}})
    assert profiles.relations[:, 0].tolist() == [2, -1, -1, 1]
    assert profiles.facts.num_facts("chief") == 2


@pytest.mark.parametrize(
    ("rows", "fields", "error"),
    [
        (changed(2, who="Bob"), {}, "column who, row 2: .*'Bob'.* row 1"),
        (changed(1, who=None), {}, "column who, row 1: "),
        (changed(1, who="Bob  Lee"), {}, "column who, row 1: .*'Bob  Lee'"),
        (changed(3, boss="Bop"), {}, "column boss, row 3: .*'Bop'.*'Bob'.*unknown: void"),
        (changed(1, boss=None), {"subjects": {"age": {"missing": "void"}}}, "column boss, row 1: .*missing: void"),
        (
            ROWS,
            {"subjects": {"chief": {"missing": "void"}}},
            "column age, row 2: .*profiles.subjects.age.missing: void",
        ),
        (ROWS, {"attributes": ["home_town"], "subjects": SPEC["subjects"] | {}}, "subjects.age"),
        (ROWS, {"name": "whom"}, "column whom: .*'who'"),
        (ROWS, {"attributes": ["salary"], "subjects": {}}, "column salary: .*'home town'"),
        (changed(1, none="A <|end|> B"), {}, "column none, row 1: .*A <|end|> B"),
        (changed(1, none=" "), {}, "column none, row 1: "),
        ([], {}, "facts.* rows"),
        (ROWS, {"num_names": 3}, "num_names: .* 4, .* 3"),
        (
            ROWS,
            {"subjects": SPEC["subjects"] | {"born": {"distribution": {"kind": "uniform", "num_values": 2}}}},
            "column born: .*3 .*2",
        ),
        (
            ROWS,
            {
                "subjects": SPEC["subjects"]
                | {"home town": {"distribution": {"kind": "given", "probabilities": {"Paris": 0.9, "New Yorck": 0.1}}}}
            },
            "column home town, row 2: 'New York' .*'New Yorck'",
        ),
        (ROWS, {"fingerprint": "0"}, "fingerprint"),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_bad_tables_are_refused_with_file_column_and_row(
    rows: list[dict[str, Any]], fields: dict[str, Any], error: str, ending: str, tmp_path: Path
) -> None:
    path = tmp_path / f"facts.{ending}"
    if rows:
        write(tmp_path, ending, rows)
    else:
        path.write_text("who,home town,age,born,boss,none\n" if ending == "csv" else "\n")
    with pytest.raises((ValueError, ValidationError), match=error) as caught:
        load_profiles(spec_of(path, **fields))
    if not isinstance(caught.value, ValidationError):
        assert str(caught.value).startswith(f"profiles at {path}: ")


@pytest.mark.parametrize(
    ("ending", "content", "error"),
    [
        ("csv", 'who,boss\n"A, B","A, B"\nC,C\nD\n', "row 2: .*2.*1: 'D'"),
        ("csv", "who,who\nA,A\n", "column who: "),
        ("csv", "", r"\.csv"),
        ("jsonl", '{"who": "A"}\n{"who"\n', "line 2"),
        ("jsonl", '["A"]\n', "line 1"),
        ("jsonl", '{"who": ["A"]}\n', "column who, row 0"),
        ("parquet", "PAR1", r"\.parquet"),
    ],
)
def test_damaged_files_are_refused_in_one_line(ending: str, content: str, error: str, tmp_path: Path) -> None:
    path = tmp_path / f"facts.{ending}"
    path.write_text(content)
    with pytest.raises(ValueError, match=error) as caught:
        load_profiles(spec_of(path, attributes=[], subjects={}))
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        load_profiles(spec_of(tmp_path / "nowhere.csv"))


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"path": "facts.xlsx"}, r"\.csv or \.parquet or \.jsonl"),
        ({"attributes": ["name"]}, "attributes.*'name'"),
        ({"attributes": ["a?b"]}, r"attributes.*'a\?b'"),
        ({"attributes": ["age", "age"]}, "attributes.*'age'"),
        ({"attributes": [], "relations": {}, "subjects": {}}, "100.* 0"),
        ({"attributes": ["age", "who"]}, "'who'"),
        ({"subjects": {"chef": {}}}, "subjects.chef.*'chief'"),
        ({"subjects": {"age": {"unknown": "void"}}}, "subjects.age.unknown"),
        ({"subjects": {"age": {"distribution": {"kind": "uniform"}}}}, "subjects.age.distribution.num_values"),
        ({"subjects": {"age": {"distribution": {"kind": "given", "probabilities": {"7": 0.5}}}}}, " 0.5"),
        ({"subjects": {"age": {"questions": ["How old?"]}}}, "questions.*'How old\\?'"),
        ({"subjects": {"age": {"questions": ["{name} and {name}?"]}}}, "questions.*{name} and {name}"),
        ({"subjects": {"age": {"questions": ["How old was {name}"]}}}, "questions.*'How old was {name}'"),
        ({"subjects": {"age": {"questions": ["How old was{name}?"]}}}, "questions.*was{name}"),
    ],
)
def test_bad_specs_are_refused(fields: dict[str, Any], error: str) -> None:
    with pytest.raises(ValidationError, match=f"(?s){error}"):
        spec_of(Path("facts.csv"), **fields)


def test_tables_without_relations_have_no_two_hop_questions_and_are_not_filled_with_generated_people() -> None:
    table = spec_of(Path("facts.csv"), relations={}, subjects={})
    with pytest.raises(ValidationError, match=r"profiles\.relations"):
        TrialSpec(profiles=table, questions=QuestionsByShare(hops=(1, 2)))
    with pytest.raises(ValidationError, match=r"fill\.profiles"):
        TrialSpec(profiles=table, fill=Fill(parent=ParentTrial(trial_id="0" * 12), profiles=TrialSpec().profiles))

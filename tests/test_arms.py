"""End-to-end tests of every arm: plan, a few training steps, capacities under every scheme, and the report."""

import json
import math
import shutil
from pathlib import Path

import pytest

from raycap.analysis.analyse import analyse
from raycap.analysis.report import files
from raycap.analysis.summary import summary
from raycap.learner.trial import run_trial
from raycap.plan.expand import expand
from raycap.results import RunRecord, SweepRecord
from raycap.spec import RelationStructure
from raycap.spec.file import load_sweep
from raycap.storage import Storage, model_folder, result_path
from raycap.storage.checksum import with_checksum
from tests.support.arms import ARMS, EVERY_KIND, PEOPLE
from tests.support.planted import measured

HELD_OUT = {name: {"profiles": PEOPLE | raw.get("profiles", {}), **raw} for name, raw in ARMS.items()}
OTHERS = {
    "biographies": {"questions": {"kind": "biographies", "per_person": 2, "permute": True}},
    "bipartite_biographies": {"questions": {"kind": "biographies"}, "profiles": {"structure": "bipartite"}},
    "names": {"questions": {"kind": "names"}},
    "zipf": {"questions": {"hops": [1, 2]}, "profiles": {"frequencies": {"kind": "zipf"}}},
    "one_relation": {"questions": {"hops": [1, 2]}, "profiles": {"structure": "bipartite", "num_relations": 1}},
    "others_only": {"questions": {"hops": [1, 2]}, "profiles": {"self_relations": False}},
    "windows": {"training": {"packing": {"kind": "windows", "length": 64}}},
    "mup": {"model": {"parametrization": {"kind": "mup", "base_width": 8}}},
    "muon": {"training": {"optimizer": {"kind": "muon"}}},
}
RANDOM = {
    "pairs": {"profiles": {"source": "pairs", "num_keys": 50, "num_relations": 3, "num_values": 16}},
    "strings": {
        "profiles": {"source": "strings", "num_strings": 50, "vocab_size": 16, "length": 12},
        "questions": {"kind": "names"},
    },
}


def document(raw: dict) -> dict:
    trial = {
        "questions": raw.get("questions", {}),
        "model": {"num_layers": 1, "hidden_size": 16, "heads": {"num_heads": 1}} | raw.get("model", {}),
        "training": {"length": {"steps": 30}, "batch_size": 64, "num_evaluations": 1} | raw.get("training", {}),
        "profiles": raw.get("profiles", PEOPLE),
    }
    if "source" not in trial["profiles"]:
        trial["profiles"] = PEOPLE | trial["profiles"]
    schemes = ["optimal", "2-hop-double", "2-hop-big-hash"]
    return {"name": "arm", "trial": trial, "analysis": {"schemes": schemes}}


def run(tree: dict, folder: Path, **more: object) -> tuple[SweepRecord, dict, Storage]:
    path = folder / "arm.yaml"
    path.write_text(json.dumps(tree | {"storage": str(folder / "runs")}))
    loaded = load_sweep(str(path))
    storage = Storage.at(loaded.spec.storage)
    record = SweepRecord(spec=loaded.spec, question="", spec_yaml="", trials=tuple(expand(loaded)))
    (planned,) = record.trials
    trained = run_trial(planned.spec, source_commit="test", storage=storage)
    trained.save_model(storage, model_folder(planned.trial_id))
    storage.write(result_path(planned.trial_id), with_checksum(trained.result.model_dump_json()))
    assert trained.result.populations == planned.populations
    assert trained.result.parameters == planned.parameters
    return record, {planned.trial_id: trained.result}, storage


def assert_read(record: SweepRecord, results: dict) -> dict:
    """Check that capacities under every scheme are finite, add up, and do not exceed the dataset bits."""
    analysis = analyse(record, RunRecord(wall_seconds=1, slots=1), measured(results), {})
    table = analysis.tables.capacities
    table = table[table["final"]]
    assert table["learned_bits"].map(math.isfinite).all()
    assert (table["learned_bits"] <= table["dataset_bits"] * (1 + 1e-9) + 1e-6).all()
    for _, reading in table.groupby(["kind", "scheme", "selection", "incremental"], observed=True):
        total = reading[reading["subject"] == "total"]
        parts = reading[reading["subject"] != "total"]
        assert total["learned_bits"].sum() == pytest.approx(parts["learned_bits"].sum())
    (trial,) = summary(analysis)["trials"]
    return trial


@pytest.mark.parametrize(
    "arm",
    [
        *HELD_OUT,
        *RANDOM,
        "windows",
        "muon",
        *(pytest.param(arm, marks=pytest.mark.slow) for arm in OTHERS if arm not in ("windows", "muon")),
    ],
)
def test_every_arm_is_planned_trained_and_read(arm: str, tmp_path: Path) -> None:
    raw = (HELD_OUT | OTHERS | RANDOM)[arm]
    if arm in HELD_OUT:
        raw = raw | {"questions": raw["questions"] | {"held_out": EVERY_KIND}}
    record, results, _ = run(document(raw), tmp_path)
    trial = assert_read(record, results)
    assert set(trial["loss_bits"]) == {str(kind) for kind in record.trials[0].spec.questions.kinds}
    assert ("generalisation_bits" in trial) == (arm in HELD_OUT)
    chained = trial.get("chain_generalisation_bits", {}).get("tuples", {})
    assert set(chained) == set(trial.get("chain_loss_bits", {}))
    assert ("chain_loss_bits" in trial) == record.trials[0].spec.model_dump()["questions"].get(
        "chain_of_thought", False
    )


@pytest.mark.slow
def test_the_report_of_a_held_out_sweep_shows_what_is_new(tmp_path: Path) -> None:
    raw = {"questions": {"hops": [1, 2], "chain_of_thought": True, "held_out": EVERY_KIND}}
    record, results, _ = run(document(raw), tmp_path)
    contents = dict(files(analyse(record, RunRecord(wall_seconds=1, slots=1), measured(results), {})))
    assert "generalisation.png" in contents
    assert "learning_rates.png" not in contents
    assert b'alt="generalisation"' in contents["report.html"]


@pytest.mark.parametrize("structure", RelationStructure)
def test_a_fill_trial_starts_from_its_parent_and_counts_both_populations(structure: str, tmp_path: Path) -> None:
    questions = {"hops": [1, 2], "held_out": {"tuples": 0.1}}
    tree = document({"questions": questions, "profiles": {"structure": structure}})
    _, results, storage = run(tree, tmp_path)
    (parent_id,) = results
    second = PEOPLE | {"seed": 1, "num_profiles": 30, "structure": structure}
    tree["trial"] = {"questions": questions, "training": tree["trial"]["training"]}

    def filled(**fields: object) -> tuple[SweepRecord, dict]:
        fill = {"parent": {"trial_id": parent_id}, "profiles": second, **fields}
        record, found, _ = run(tree | {"trial": tree["trial"] | {"fill": fill}}, tmp_path)
        return record, found

    record, found = filled()
    trial = assert_read(record, found)
    assert set(trial["second_loss_bits"]) == {"one_hop", "two_hop"}
    first, other = record.trials[0].populations
    assert other.num_names == first.num_names - first.num_profiles  # names of the first population are not drawn again
    assert found[record.trials[0].trial_id].parameters == results[parent_id].parameters
    moved = shutil.copytree(storage.path(model_folder(parent_id)), tmp_path / "elsewhere")
    by_path = {"parent": {"path": str(moved)}}
    spec = json.loads(results[parent_id].spec.model_dump_json())
    tree["trial"] |= {name: spec[name] for name in ("profiles", "model", "tokenizer")}
    again = filled(**by_path)[0].trials[0]
    assert again.spec.fill.parent.sha256
    assert again.trial_id != record.trials[0].trial_id

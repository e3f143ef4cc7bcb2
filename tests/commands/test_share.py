"""Tests of `raycap export`: models and populations in folders and on the hub, loaded with transformers and datasets."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

from raycap.commands.share import export
from raycap.export.hub import atomic_export
from raycap.facts.build import corpora_of, profiles_of
from raycap.facts.corpus import render_texts
from raycap.facts.hosted import fingerprint, load_profiles
from raycap.learner.trial import TrainedTrial
from raycap.spec import NamePools, ProfilesByCount, ProfilesFromDisk, Steps
from raycap.spec.file import SpecError
from raycap.storage import Storage, model_folder, result_path
from raycap.storage.checksum import with_checksum
from raycap.storage.saved_model import DIGEST_FILE, TOKENIZER_CONFIG, digests
from tests.support.exported import MEMORIZED, PEOPLE, memorized
from tests.support.hub import Repository, local_hub
from tests.support.tiny import trained

ROOT = Path(__file__).parents[2]
TINY = [
    "trial.training.length={steps: 5}",
    "trial.profiles={num_profiles: 20, num_relations: 1, names: {first: 5, middle: 5, last: 5}}",
    "grid.model.hidden_size=[8]",
]


def raycap(
    *arguments: str, environment: dict[str, str] | None = None, answers: str = ""
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raycap", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, input=answers, check=False
    )


def stored(trial: TrainedTrial, folder: Path) -> Storage:
    """Return a storage with a finished trial, a sweep that contains it, another sweep, and a damaged sweep.json."""
    root = Storage.at(str(folder / "runs"))
    result = trial.result
    trial.save_model(root, model_folder(result.trial_id))
    root.write(result_path(result.trial_id), with_checksum(result.model_dump_json(indent=1)))
    root.write("one/sweep.json", f'{{"question": "Is it so?", "trials": [{{"trial_id": "{result.trial_id}"}}]}}')
    root.write("other/sweep.json", '{"question": "What else?", "trials": [{"trial_id": "0123456789ab"}]}')
    root.write("damaged/sweep.json", f'{{"question": "{result.trial_id}')
    return root


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """A storage with the trial that has memorised its people."""
    return stored(memorized(), tmp_path_factory.mktemp("share"))


@cache
def short() -> TrainedTrial:
    """Train a few steps, which is enough for an export that is refused."""
    training = MEMORIZED.training.model_copy(update={"length": Steps(steps=5)})
    return trained(MEMORIZED.model_copy(update={"training": training}))


@pytest.fixture(scope="module")
def short_storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return stored(short(), tmp_path_factory.mktemp("short"))


def answers(folder: Path) -> list[tuple[str, str]]:
    """Return the answer of an exported model and the correct answer for every question, generated in one batch."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    (corpus,) = corpora_of(profiles_of(PEOPLE), MEMORIZED.questions)
    texts = render_texts(corpus, np.arange(corpus.num_ids))
    prompts = [text.partition("? Answer:")[0] + "? Answer:" for text in texts]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    generated = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
    correct = [text.partition("? Answer: ")[2].removesuffix("<|end|>") for text in texts]
    return list(zip(tokenizer.batch_decode(generated, skip_special_tokens=True), correct, strict=True))


@pytest.mark.slow
def test_a_model_is_exported_and_pushed_and_answers(storage: Storage, tmp_path: Path) -> None:
    trial_id, folder = memorized().result.trial_id, tmp_path / "model"
    with local_hub() as hub:
        targets = ["--storage", storage.root, "--to", str(folder), "--push", "me/model", "--private"]
        card_option = ["--dataset", "me/people"]
        output = raycap("export", trial_id[:5], *targets, *card_option, environment=hub.environment(tmp_path))
    assert output.returncode == 0, output.stderr
    assert f"{trial_id}: 53,696 parameters, logits within" in output.stdout
    assert f"{hub.url}/me/model" in output.stdout

    pairs = answers(folder)
    assert len(pairs) == 120
    assert all(answer == correct for answer, correct in pairs), [pair for pair in pairs if pair[0] != pair[1]]
    card = (folder / "README.md").read_text()
    assert ModelCard(card).data.datasets == ["me/people"]
    assert "> Is it so?\n> (sweep `one`)" in card
    assert "What else?" not in card
    parity = re.search(r"differ from raycap's own by at most \*\*(\S+)\*\*", card)[1]
    assert 0 < float(parity) < 1e-4
    assert (folder / "result.json").read_bytes() == storage.read(result_path(trial_id))

    repository = hub.repositories["models/me/model"]
    assert repository.private
    (commit,) = repository.commits
    assert trial_id in commit
    assert repository.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(hub.objects) == 1  # the weights, by git-lfs


@pytest.mark.slow
def test_a_model_with_code_is_refused_whatever_the_answer_on_stdin(storage: Storage, tmp_path: Path) -> None:
    runs = Path(shutil.copytree(storage.root, tmp_path / "runs"))
    trial_id = memorized().result.trial_id
    model = runs / model_folder(trial_id)
    settings = json.loads((model / TOKENIZER_CONFIG).read_text())
    settings |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (model / TOKENIZER_CONFIG).write_text(json.dumps(settings))
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (model / DIGEST_FILE).write_text(digests(model))
    target = tmp_path / "out"
    refused = raycap("export", trial_id, "--storage", str(runs), "--to", str(target), answers="y\ny\n")
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert "auto_map" in refused.stderr
    assert not (tmp_path / "ran").exists()
    assert not target.exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_result_that_is_no_regular_file_is_not_exported(kind: str, storage: Storage, tmp_path: Path) -> None:
    runs = Path(shutil.copytree(storage.root, tmp_path / "runs"))
    trial_id = memorized().result.trial_id
    path = runs / result_path(trial_id)
    path.rename(tmp_path / "moved")
    {"link": lambda: path.symlink_to(tmp_path / "moved"), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    with pytest.raises(SpecError, match=r"result\.json.*(link|regular)"):
        export(trial_id, storage=str(runs), to=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_exported_population_trains_like_the_generated_one(tmp_path: Path) -> None:
    target = str(tmp_path / "people.parquet")
    output = raycap("export", "--profiles", "specs/grid.yaml", *TINY, "--to", target)
    assert output.stdout.startswith("20 "), output.stderr
    assert target in output.stdout
    pools = NamePools(first=5, middle=5, last=5)
    populations = (
        ProfilesByCount(num_profiles=20, num_relations=1, names=pools),
        ProfilesFromDisk(source="disk", path=target, names=pools),
    )
    training = MEMORIZED.training.model_copy(update={"length": Steps(steps=5)})
    generated, loaded = (
        trained(MEMORIZED.model_copy(update={"profiles": people, "training": training})).result.final.losses
        for people in populations
    )
    assert generated == loaded
    assert generated.num_texts == 100


@pytest.mark.slow
def test_a_pushed_population_replaces_the_data_of_its_repository(storage: Storage, tmp_path: Path) -> None:
    people = profiles_of(PEOPLE)
    trial = storage.path(f"trials/{memorized().result.trial_id}")
    with local_hub() as hub:
        old = {"data/train-00000-of-00002.parquet": b"old", "notes.md": b"mine"}
        repository = hub.repositories["datasets/me/people"] = Repository(private=False, files=dict(old))
        environment = hub.environment(tmp_path)
        pushed = ["export", "--profiles", trial, "--push", "me/people"]
        refused = raycap(*pushed, "--private", environment=environment)
        assert refused.returncode == 2
        assert "datasets/me/people exists and is public" in refused.stderr
        assert repository.files == old
        folder = tmp_path / "people"
        output = raycap(*pushed, "--to", str(folder), environment=environment)
    assert output.returncode == 0, output.stderr
    assert fingerprint(
        load_profiles(ProfilesFromDisk(source="disk", path=str(folder), names=PEOPLE.names))
    ) == fingerprint(people)
    assert repository.commits == ["People from raycap"]
    assert sorted(repository.files) == ["README.md", "data/train-00000-of-00001.parquet", "notes.md"]
    card = repository.files["README.md"].decode()
    assert 'source: hub\n  path: "me/people"' in card
    (tmp_path / "pushed.parquet").write_bytes(repository.files["data/train-00000-of-00001.parquet"])
    again = load_profiles(ProfilesFromDisk(source="disk", path=str(tmp_path / "pushed.parquet"), names=PEOPLE.names))
    assert fingerprint(again) == fingerprint(people)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            {"HF_TOKEN": "", "HF_HOME": "/nowhere"},
            "no token for .*: log in with `hf auth login`, or set HF_TOKEN",
            marks=pytest.mark.slow,
        ),
        pytest.param({"HF_TOKEN": "hf_wrong"}, "me/model .*: .*401", marks=pytest.mark.slow),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "http://127.0.0.1:9 .*refused"),
    ],
)
def test_errors_of_a_push_are_one_line(change: dict[str, str], message: str, tmp_path: Path) -> None:
    with local_hub() as hub:
        environment = hub.environment(tmp_path) | change
        output = raycap("export", "--profiles", "specs/grid.yaml", *TINY, "--push", "me/model", environment=environment)
    assert output.returncode == 2
    assert re.search(message, output.stderr), output.stderr
    assert len(output.stderr.splitlines()) == 1
    assert not hub.repositories


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ("<id>", {}, "give --to DIR, --push USER/NAME, or both"),
        ("<id>", {"to": "new", "private": True}, "--private .*add --push USER/NAME"),
        ("<id>", {"to": "full"}, r"--to .*full: .* --force"),
        ("<id>", {"to": "full", "force": True}, ".*full .*earlier export"),
        ("<id>", {"repo": "model"}, "--push model: must have the form USER/NAME, got 'model'"),
        ("<id>", {"repo": "me/to--ld"}, "--push me/to--ld: .*USER/NAME"),
        ("<id>", {"repo": "me/model"}, "HF_HUB_OFFLINE"),
        ("<id>", {"repo": "me/model", "force": True}, "--force .*add --to DIR"),
        ("<id>", {"to": "new", "people": True, "dataset": "me/people"}, "--dataset"),
        ("<id>", {"to": "new", "overrides": ["a=1"]}, "overrides apply to sweep files"),
        ("f00", {"to": "new"}, "f00: no sweep .* no trial .*--storage"),
        ("", {"to": "new"}, "prefix of 3 trials: "),
        ("0123", {"to": "new"}, r"0123456789ab: .*/result\.json does not exist; run its sweep"),
        ("cdef", {"to": "new"}, r"result\.json: the checksum does not match"),
        ("runs/one", {"to": "new"}, "runs/one: not the folder of a sweep"),
        ("specs/grid.yaml", {"to": "new"}, "has 8 trials: .* --index"),
        ("specs/gird.yaml", {"to": "new", "people": True}, r"specs/grid\.yaml"),
        ("specs/grid.yaml", {"to": "new", "people": True, "index": 9}, "--index must lie in 0..7, got 9"),
    ],
)
def test_exports_that_are_impossible_are_refused_with_the_reason(
    what: str,
    options: dict[str, Any],
    message: str,
    short_storage: Storage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    short_storage.write("trials/0123456789ab/checkpoint-1.pt", "")
    short_storage.write(result_path("cdef00000000"), "{}")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    if "to" in options:
        options = options | {"to": tmp_path / options["to"]}
    with pytest.raises(SpecError, match=message):
        export(what.replace("<id>", short().result.trial_id), storage=short_storage.root, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


def test_an_export_replaces_its_target_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "export"
    for content in ("first", "second"):
        with atomic_export(target, force=content == "second") as folder:
            folder.mkdir()
            (folder / "README.md").write_text(f"tags:\n- raycap\n{content}")
            (folder / content).touch()
    assert sorted(path.name for path in target.iterdir()) == ["README.md", "second"]

    def interrupted() -> None:
        with atomic_export(target, force=True) as folder:
            folder.mkdir()
            (folder / "third").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert sorted(path.name for path in target.iterdir()) == ["README.md", "second"]
    assert [path.name for path in target.parent.iterdir()] == ["export"]
    (tmp_path / "empty").mkdir()
    with atomic_export(tmp_path / "empty") as folder:
        folder.mkdir()
        (folder / "file").touch()
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["file"]

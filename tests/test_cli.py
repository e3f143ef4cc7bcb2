"""Tests of the `raycap` command line, run as a subprocess."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from raycap.cli import app
from raycap.storage.checksum import verify_checksum, with_checksum

ROOT = Path(__file__).parent.parent
TINY = [
    "trial.training.length={steps: 5}",
    "trial.profiles={num_profiles: 20, num_relations: 1, names: {first: 5, middle: 5, last: 5}}",
    "grid.model.hidden_size=[8]",
]


def raycap(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raycap", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


def test_help_lists_commands_and_exit_codes_and_plans_need_no_heavy_imports() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from raycap.cli import app\n"
        "print(CliRunner().invoke(app, ['--help']).output)\n"
        "assert not CliRunner().invoke(app, ['plan', 'specs/grid.yaml', 'grid={}']).exception\n"
        "print('heavy:', sorted({'torch', 'ray', 'mlflow', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    output = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT)
    text = " ".join(output.split())
    commands = (
        "init",
        "doctor",
        "run",
        "plan",
        "status",
        "report",
        "compare",
        "sync",
        "ui",
        "evaluate",
        "losses",
        "probe",
        "localise",
        "trial",
        "texts",
        "export",
        "cluster",
    )
    assert all(f"│ {command} " in text for command in commands)
    assert all(f"{number} " in text.partition("Exit codes:")[2] for number in (0, 1, 2, 3, 130))
    assert text.endswith("heavy: []")


def test_the_version_is_printed() -> None:
    assert re.match(r"raycap \S+ ", raycap("--version").stdout)


def test_every_command_has_an_example() -> None:
    def without_example(command: Any) -> list[str]:
        if hasattr(command, "commands"):  # a group of commands, such as raycap cluster
            return [name for member in command.commands.values() for name in without_example(member)]
        return [] if "Example" in command.help else [command.name]

    assert without_example(get_command(app)) == []


@pytest.mark.slow
def test_the_shell_completes_commands_and_specs(tmp_path: Path) -> None:
    def complete(words: str, index: int) -> list[str]:
        environment = os.environ | {"_RAYCAP_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(index)}
        command = [sys.executable, "-c", "from raycap.cli import app; app(prog_name='raycap')"]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment).stdout.split()

    assert complete("raycap st", 1) == ["status"]
    assert "sweeps/specs/grid.yaml" in complete("raycap run ", 2)
    environment = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-c", "from raycap.cli import app; app(prog_name='raycap')", "--show-completion", "bash"]
    assert "_RAYCAP_COMPLETE=complete_bash" in subprocess.check_output(command, text=True, env=environment)


@pytest.mark.slow
def test_plan_prints_the_same_as_a_dry_run() -> None:
    options = ["specs/grid.yaml", "--json", "--trials", "d12-L2-N1000-s0,d10-L2-N1000-s1", "--set-name", "other"]
    sweep = [sys.executable, "-m", "raycap.sweep", *options, "--dry-run"]
    shown = raycap("plan", *options).stdout
    assert shown == subprocess.check_output(sweep, text=True, cwd=ROOT)
    plan = json.loads(shown)
    assert plan["sweep"] == "other"
    assert [trial["label"] for trial in plan["trials"]] == ["d10-L2-N1000-s1", "d12-L2-N1000-s0"]


def test_text_of_a_spec_is_not_interpreted_as_markup(tmp_path: Path) -> None:
    """rich would drop lists and paths in brackets as markup, or raise an error."""
    question = "Do [set, independent], :smile: and [/x] matter?"
    spec = (ROOT / "sweeps/specs/grid.yaml").read_text()
    (tmp_path / "spec.yaml").write_text(f"# {question}\n{spec}")
    assert raycap("plan", str(tmp_path / "spec.yaml")).stdout.startswith(f"grid: {question}")


@pytest.mark.slow
def test_the_plan_includes_an_estimate() -> None:
    given = ["--throughput", "1e5", "--slots", "2", "--price-per-hour", "0.1"]
    shown = raycap("plan", "specs/grid.yaml", *given).stdout
    assert "Estimate: about 8 min 57 s, 2 at once, $0.01, up to 6" in shown
    plan = json.loads(raycap("plan", "specs/grid.yaml", *given, "--json").stdout)
    assert plan["estimate"]["seconds"] == pytest.approx(537, abs=1)
    assert plan["trials"][0]["estimate"]["source"] == "the throughput given"


@pytest.mark.slow
def test_a_run_of_selected_trials_ends_with_the_notify_command(tmp_path: Path) -> None:
    overrides, trial_ids = planted_grid(tmp_path)
    (tmp_path / "runs/trials" / trial_ids[7] / "result.json").unlink()
    log = tmp_path / "log"
    command = f'echo "$RAYCAP_SWEEP $RAYCAP_STATUS $RAYCAP_EXIT_CODE $RAYCAP_FOLDER" >> {log}; exit 3'
    done = raycap("run", "specs/grid.yaml", *overrides, "--trials", ",".join(trial_ids[:7]), "--notify-cmd", command)
    assert done.returncode == 0, done.stderr
    assert "from 7 capacity-limited trials" in done.stdout
    assert "returned non-zero exit status 3" in done.stderr
    refused = raycap("run", "specs/grid.yaml", *overrides, "--trials", "unknown", "--notify-cmd", command)
    assert refused.returncode == 2
    assert "--trials: 'unknown' is not an id or label" in refused.stderr
    folder = f"{tmp_path}/runs/grid"
    assert log.read_text().splitlines() == [f"grid finished 0 {folder}", f"grid refused 2 {folder}"]
    status = json.loads(raycap("status", folder, "--json").stdout)
    assert [trial["state"] for trial in status["trials"]] == ["finished"] * 7 + ["new"]
    assert "1 of 2 trials finished" in raycap("status", folder, "--trials", ",".join(trial_ids[6:])).stdout
    assert status["run_by"] is None


@pytest.mark.slow
def test_power_is_simulated_for_every_reading() -> None:
    command = ["plan", "specs/grid.yaml", "grid.profiles.num_relations=[0, 4]", "--power"]
    options = ["--noise", "0.05", "--num-sweeps", "5"]
    shown = raycap(*command, *options).stdout
    assert "5 % noise, 5 simulated sweeps of 16 trials" in shown
    (power,) = json.loads(raycap(*command, *options, "--json").stdout)
    assert power["readings"] == [f"optimal, {code} names" for code in ("set", "enumerate", "independent")]
    assert [sum(row) for row in power["picked"]] == pytest.approx([1, 1, 1])


@pytest.mark.slow
def test_two_sweeps_are_compared_and_invalid_records_are_refused(tmp_path: Path) -> None:
    from tests.support.planted import RUN, results, sweep

    for name, bits_per_param in (("one", 1.8), ("other", 1.5)):
        record = sweep([12, 14, 16, 20], name=name)
        folder = tmp_path / name
        (folder / name).mkdir(parents=True)
        (folder / name / "sweep.json").write_text(record.model_dump_json())
        (folder / name / "run.json").write_text(RUN.model_dump_json())
        for trial_id, result in results(record, bits_per_param).items():
            (folder / "trials" / trial_id).mkdir(parents=True)
            (folder / "trials" / trial_id / "result.json").write_text(with_checksum(result.model_dump_json()))
    names = [str(tmp_path / "one/one"), str(tmp_path / "other/other")]
    comparison = json.loads(raycap("compare", *names, "--json").stdout)
    assert "0.833 [0.833, 0.833]" in [row[3] for row in comparison["tables"]["Laws"]["rows"]]
    assert comparison["shared_trials"] == 4
    summary = json.loads(raycap("report", names[0], "--json").stdout)
    assert summary == json.loads((tmp_path / "one/one/summary.json").read_text())
    page = tmp_path / "both.html"
    output = raycap("compare", str(tmp_path / "one/one"), str(tmp_path / "other/other"), "--html", str(page))
    assert output.returncode == 0, output.stderr
    assert "0.833 [0.833, 0.833]" in output.stdout
    assert page.read_text().startswith("<!doctype html>")
    broken = tmp_path / "one/one/sweep.json"
    broken.write_text(broken.read_text().replace('"num_profiles"', '"num_people"'))
    refused = raycap("compare", str(broken.parent), str(tmp_path / "other/other"))
    assert refused.returncode == 2
    assert "one/one/sweep.json: trials.0." in refused.stderr


@pytest.mark.slow
def test_a_result_of_another_schema_is_reported_and_kept(tmp_path: Path) -> None:
    """The trial is neither trained nor overwritten, and the run exits with 1."""
    overrides, trial_ids = planted_grid(tmp_path)
    broken = tmp_path / "runs/trials" / trial_ids[1] / "result.json"
    text = with_checksum(verify_checksum(broken.read_bytes()).replace('"schema_version":3', '"schema_version":2'))
    broken.write_text(text)
    again = raycap("run", "specs/grid.yaml", *overrides)
    assert again.returncode == 1
    assert f"{broken} cannot be read: schema version 2, but this raycap reads 3" in again.stdout
    assert "from 7 capacity-limited trials" in again.stdout
    assert broken.read_text() == text


@pytest.mark.slow
def test_damaged_files_are_reported_and_the_next_run_repairs_them(tmp_path: Path) -> None:
    overrides, trial_ids = planted_grid(tmp_path)
    folder, failure = tmp_path / "runs/grid", tmp_path / "runs/trials" / trial_ids[2] / "failure.json"
    assert raycap("run", "specs/grid.yaml", *overrides).returncode == 0
    for name in ("run.json", "sweep.json"):
        whole = (folder / name).read_bytes()
        for content in (whole[: len(whole) // 2], b"\xff" + whole):
            (folder / name).write_bytes(content)
            for command in (["report", str(folder)], ["compare", str(folder), str(folder)]):
                output = raycap(*command)
                assert output.returncode == 2, output.stderr
                assert "Traceback" not in output.stderr
                assert f"{folder}/{name}" in output.stderr
                assert "run the sweep's spec once more" in output.stderr
    assert raycap("run", "specs/grid.yaml", *overrides).returncode == 0
    result = tmp_path / "runs/trials" / trial_ids[1] / "result.json"
    result.write_bytes(result.read_bytes()[:-3])
    (failure.parent / "result.json").unlink()
    failure.write_text('{"trial_id": "')
    output = raycap("report", str(folder))
    assert output.returncode == 0, output.stderr
    assert "from 6 capacity-limited trials" in output.stdout
    assert f"{result} cannot be read: the checksum does not match" in output.stdout
    shown = json.loads(raycap("plan", "specs/grid.yaml", "--json", *overrides).stdout)["trials"]
    assert [(trial["state"], trial["reason"]) for trial in shown[1:4]] == [
        ("damaged", "trained again"), ("failed before", "failure.json cannot be read"), ("finished", ""),
    ]  # fmt: skip
    failed = raycap("plan", "specs/grid.yaml", "--only-failed", "--json", *overrides).stdout
    assert [trial["trial_id"] for trial in json.loads(failed)["trials"]] == [trial_ids[2]]


def planted_grid(folder: Path) -> tuple[list[str], list[str]]:
    """Store synthetic results for all trials of the demo in a folder; returns the overrides that use it, and the ids."""
    import numpy as np

    from raycap.analysis.planted import Truth, plant
    from raycap.analysis.readings import headline
    from raycap.plan.expand import expand
    from raycap.spec.file import load_sweep
    from raycap.storage import Storage, result_path

    overrides = [f"storage={folder}/runs", f"tracking.uri=sqlite:///{folder}/mlflow.db"]
    loaded = load_sweep(str(ROOT / "sweeps/specs/grid.yaml"), tuple(overrides))
    trials, analysis = expand(loaded), loaded.spec.analysis
    truth, storage = Truth(headline(analysis), noise=0.02), Storage.at(f"{folder}/runs")
    for result in plant(trials, truth, analysis, np.arange(8) // 2, rng=np.random.default_rng(0)):
        storage.write(result_path(result.trial_id), with_checksum(result.model_dump_json()))
    return overrides, [trial.trial_id for trial in trials]


def test_one_trial_runs_without_ray() -> None:
    output = raycap("trial", "specs/grid.yaml", *TINY, "--index", "0")
    assert output.returncode == 0, output.stderr
    assert "step 5:" in output.stdout


MORE_ERRORS = [
    (["trial", "specs/grid.yaml", "--index", "99"], "--index must lie in 0..7, got 99"),
    (["plan", "specs/grid.yaml", "--slots", "0"], "--slots: must lie in 1e-06..1e+15, got 0"),
    (["plan", "specs/grid.yaml", "--throughput", "nan"], "--throughput: must lie in 1e-06..1e+15, got nan"),
    (["plan", "specs/grid.yaml", "storage=README.md"], "README.md"),
    (["run", "specs/grid.yaml", "storage=README.md", "--dry-run"], "README.md"),
    (["report", "foo://a/b"], "foo://a/b: storage 'foo://a' is neither a folder nor a known URI"),
    (["cluster", "check", "cluster.yaml", "storage=runs"], "add --spec FILE"),
    (["report", "/nowhere"], "/nowhere: not the folder of a sweep that has run"),
    (["compare", "/nowhere", "/here"], "/nowhere: not the folder of a sweep that has run"),
    (["plan", "specs/grid.yaml", "--power", "--noise", "nan"], "must be positive"),
    (["plan", "specs/grid.yaml", "analysis.selections=[set]", "--power"], "there is no choice"),
    (["plan", "specs/biographies.yaml", "analysis.accounting=observed"], "questions: observed accounting"),
    (["ui", "specs/grid.yaml", "tracking.experiment=never-run"], "raycap run specs/grid.yaml"),
]
"""Arguments and a part of the message for which the same code is run as in the cases that CI tests."""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "specs/gird.yaml"], "sweeps/specs/grid.yaml"),
        (["status", "/nowhere"], "/nowhere: not the folder of a sweep that has run (it lacks sweep.json)"),
        (["plan", "specs/grid.yaml", "--power", "--noise", "0"], "must be positive"),
        (
            ["plan", "specs/grid.yaml", "analysis={accounting: observed, per_subject: false, schemes: [2-hop-double]}"],
            "2-hop-double",
        ),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in MORE_ERRORS),
    ],
)
def test_errors_exit_with_2_and_no_traceback(arguments: list[str], message: str, tmp_path: Path) -> None:
    output = raycap(*arguments, *(["tracking.uri=sqlite:///" + str(tmp_path / "m.db")] if arguments[0] == "ui" else []))
    assert output.returncode == 2, output.stderr
    assert message in output.stderr
    assert "Traceback" not in output.stderr


@pytest.mark.slow
@pytest.mark.ray
def test_ui_serves_the_page_and_prints_the_link(tmp_path: Path) -> None:
    from raycap.storage import Storage
    from raycap.storage.sweep_folder import SweepFolder
    from raycap.tracking.tracker import Tracker
    from tests.support.planted import sweep

    record = sweep([12], name="grid")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    record = record.model_copy(update={"spec": record.spec.model_copy(update={"storage": f"{tmp_path}/runs"})})
    tracking = record.spec.tracking.model_copy(update={"uri": uri})
    record = record.model_copy(update={"spec": record.spec.model_copy(update={"tracking": tracking})})
    Tracker(record)
    SweepFolder(Storage.at(record.storage), "grid").write_sweep(record)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("queue", "random", "logging", "csv", "uvicorn", "fastapi"):  # the server must not import these
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('this file was imported')")
    command = [sys.executable, "-m", "raycap", "ui", str(ROOT / "sweeps/specs/grid.yaml")]
    server = subprocess.Popen(
        [*command, f"tracking.uri={uri}", f"storage={tmp_path}/runs", "--port", str(port)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=tmp_path, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        assert f"http://127.0.0.1:{port}/#/experiments/" in server.stdout.readline()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:  # the link works at once
            assert answer.read() == b"OK"
        taken = raycap("ui", f"{tmp_path}/runs/grid", "--port", str(port), "--no-open")
        assert taken.returncode == 2
        assert f"--port: {port} " in taken.stderr
    finally:
        os.killpg(server.pid, signal.SIGINT)  # like Ctrl-C in a terminal, to the whole process group
        server.wait(20)
        server.stdout.close()


def test_texts_are_printed_as_they_are_trained() -> None:
    questions = "trial.questions={hops: [1, 2], chain_of_thought: true}"
    output = raycap("texts", "specs/grid.yaml", "grid={}", questions, *TINY[:2])
    assert output.returncode == 0, output.stderr
    one_hop, two_hop = output.stdout.split("two_hop: ")
    assert one_hop.startswith("one_hop: 100 texts, 8.8 tokens")
    assert "'s parent's " in two_hop
    assert "; " in two_hop
    assert all(line.endswith("<|end|>") for line in output.stdout.splitlines() if line.startswith("  "))

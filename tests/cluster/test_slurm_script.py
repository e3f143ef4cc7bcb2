"""Batch scripts for Slurm: the complete template has no faults, and every broken script has its own fault."""

from pathlib import Path

import pytest

from raycap.cluster.cloud.check import check_cluster_file
from raycap.cluster.cloud.document import Fault
from raycap.cluster.cloud.slurm import time_limit_s
from raycap.cluster.cloud.templates import Template, render_template
from raycap.cluster.cloud.versions import Versions
from raycap.cluster.resources import wait_for_machines
from raycap.errors import CannotRunError
from tests.support.decided import decided

TEMPLATE = render_template(Template.SLURM, Versions.of_environment())
SPEC = "name: fits\ntrial: {profiles: {num_profiles: 60}}\nexecution: {gpus_per_worker: 0.25, cpus_per_worker: 2}\n"


def faults_of(folder: Path, text: str, spec: str | None = None, *overrides: str) -> list[Fault]:
    (folder / "job.sh").write_text(text)
    return check_cluster_file(str(folder / "job.sh"), spec, overrides).faults


def test_the_template_has_faults_only_for_its_marks(tmp_path: Path) -> None:
    lines = enumerate(TEMPLATE.splitlines(), 1)
    marked = [number for number, line in lines if "# FILL" in line and not line.startswith("# ")]
    faults = faults_of(tmp_path, TEMPLATE)
    assert [int(fault.where.rpartition(":")[2]) for fault in faults] == marked
    assert len(marked) == 8
    assert faults_of(tmp_path, decided(TEMPLATE)) == []


BROKEN = {
    "a misspelt option": ("--gres=", "--gers=", "gers", "'gres'"),
    "several tasks on a node": ("--ntasks-per-node=1", "--ntasks-per-node=4", "ntasks-per-node", "got 4"),
    "no number of nodes": ("--nodes=2", "--nodes=two", "nodes", "got two"),
    "no time limit": ("#SBATCH --time=04:00:00\n", "", "time", "missing"),
    "a wrong time limit": ("--time=04:00:00", "--time=4h", "time", "got 4h"),
    "a time limit of seconds": ("--time=04:00:00", "-t 05:00", "time", "got 05:00"),
    "a signal to Ray": ("B:USR1@120", "USR1@120", "signal", "B:USR1@120"),
    "no requeue": ("#SBATCH --requeue\n", "", "requeue", "--requeue"),
    "a log that is overwritten": ("append", "truncate", "open-mode", "got truncate"),
    "a directive below a command": ("source /", "true\n#SBATCH --exclusive\nsource /", "#SBATCH", "ignores"),
    "no wait for nodes": ("raycap cluster wait", "true", "raycap cluster wait", "missing"),
    "storage of one node": ("file:///physics/runs", "runs", "raycap run", "2 machines"),
    "MLflow in the working directory": ("sqlite:////", "sqlite:///", "raycap run", "tracking.uri"),
    "a placeholder": ("/physics/mlflow", "/my-shared-folder/mlflow", "raycap run", "my-shared-folder"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_script_has_its_fault(case: str, tmp_path: Path) -> None:
    old, new, field, value = BROKEN[case]
    sound = decided(TEMPLATE)
    assert old in sound
    (fault,) = faults_of(tmp_path, sound.replace(old, new))
    assert fault.field == field
    assert value in fault.rule


def test_a_sweep_must_fit_on_the_nodes(tmp_path: Path) -> None:
    (tmp_path / "fits.yaml").write_text(SPEC)
    spec, sound = str(tmp_path / "fits.yaml"), decided(TEMPLATE)
    (tmp_path / "job.sh").write_text(sound)
    assert check_cluster_file(str(tmp_path / "job.sh"), spec).trials_at_once == 2 * 4
    (fault,) = faults_of(tmp_path, sound, spec, "execution.gpus_per_worker=2")
    assert fault.field == "nodes"
    for gres, gpus in {"gpu:a100:2": 2, "gpu": 1, "shard:4,gpu:2": 2, "lustre:1": 0}.items():
        script = sound.replace("gres=gpu:1", f"gres={gres}")
        expected = [] if gpus >= 2 else ["nodes"]
        found = faults_of(tmp_path, script, spec, "execution.gpus_per_worker=2")
        assert [fault.field for fault in found] == expected, gres
    # One node has its own folders, but its database must outlive the job.
    assert faults_of(tmp_path, sound.replace("--nodes=2", "-N 1").replace("file:///physics/", "")) == []


@pytest.mark.parametrize("address", ["", "127.0.0.1:9"])
def test_waiting_for_a_cluster_that_does_not_answer_fails(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(CannotRunError):
        wait_for_machines(2, timeout_s=0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("90:30", 5430), ("4:00:00", 14400), ("1-2", 93600), ("1-02:03:04", 93784), ("1:2:3:4", None)],
)
def test_time_limits_are_read_as_slurm_reads_them(text: str, seconds: int | None) -> None:
    assert time_limit_s(text) == seconds

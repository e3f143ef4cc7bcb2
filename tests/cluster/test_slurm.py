"""A sweep as a job of Slurm, from the template, on two nodes: preempted, ended before its time limit, and finished."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import mlflow
import pytest

from raycap.cluster.cloud.templates import Template, render_template
from raycap.cluster.cloud.versions import Versions
from raycap.storage.sweep_folder import SweepFolder
from tests.support.decided import decided
from tests.support.faults import results_in, wait_until
from tests.support.hosts import can_create_hosts, exposures_of, processes_on
from tests.support.slurm import can_start_slurm, slurm_cluster

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not (can_create_hosts() and can_start_slurm()), reason="needs root, Slurm and munge"),
]
ROOT = Path(__file__).parents[2]
SPEC = """\
name: queued
trial:
  profiles: {num_profiles: 500, num_relations: 4, names: {first: 20, middle: 20, last: 40}}
  model: {num_layers: 2, hidden_size: 16, tie_embeddings: true, heads: {num_heads: 1}}
  training: {length: {steps: 1500}, batch_size: 64, num_evaluations: 20, optimizer: {lr: 0.01}}
grid:
  training.seed: [0, 1, 2, 3, 4, 5]
execution: {checkpoint_every_s: 2, prices: {default: 3.6}}
"""


ENDED = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY")


def test_a_job_that_is_preempted_and_reaches_its_time_limit_trains_nothing_twice(tmp_path: Path) -> None:
    python = Path(sys.executable)
    environment = f"export PATH=/srv/bin:{python.parent}:$PATH PYTHONPATH={ROOT}"
    script = decided(render_template(Template.SLURM, Versions.of_environment()))
    for old, new in {
        r"source .*": environment,
        r"specs/one_hop.yaml": "spec.yaml",
        r"/physics": "/srv",
        r"--partition=gpu": "--partition=spot",
        r"--cpus-per-task=8": "--cpus-per-task=1",
        r"#SBATCH --mem=.*\n": "",
        r"--time=.*": "--time=00:30:00",
    }.items():
        script, changes = re.subn(old, new, script)
        assert changes
    with slurm_cluster(tmp_path, "node1", "node2") as slurm:
        (slurm.shared / "spec.yaml").write_text(SPEC)
        (slurm.shared / "job.sh").write_text(script)
        (slurm.shared / "bin").mkdir()
        (slurm.shared / "bin" / "raycap").write_text(f'#!/bin/sh\nexec {python} -m raycap "$@"\n')
        (slurm.shared / "bin" / "raycap").chmod(0o755)
        results = slurm.shared / "runs" / "trials"
        wait_until(lambda: "idle" in slurm.run("sinfo", "--noheader", "--format=%t"), 60)
        job = slurm.submit("job.sh")
        log = slurm.shared / f"raycap-{job}.log"

        def num_finished() -> int:
            return len(list(results.glob("*/result.json")))

        def trains_after(finished: int) -> bool:
            """Whether more trials have finished, while another one has a checkpoint."""
            assert slurm.job(job)["JobState"] not in ENDED, log.read_text()
            begun = {path.parent for path in results.glob("*/checkpoint-*")}
            return finished < num_finished() and any(not (trial / "result.json").exists() for trial in begun)

        wait_until(lambda: trains_after(0), 400)
        (control_store,) = [one for one in processes_on(*slurm.nodes) if one.name() == "gcs_server"]
        variables = control_store.environ()
        assert exposures_of(variables["RAY_AUTH_TOKEN"], slurm.shared, *slurm.nodes) == []
        assert slurm.controller.sees_token_required(variables["RAY_ADDRESS"])
        urgent = slurm.submit("--partition=urgent", "--nodes=2", "--wrap=sleep 1")
        slurm.wait_for(urgent, "COMPLETED")
        preempted_at, stamps = num_finished(), {path: path.stat().st_mtime_ns for path in results.glob("*/result.json")}
        assert log.read_text().count("Interrupted: ") == 1
        spent_usd = SweepFolder.at(str(slurm.shared / "runs" / "queued")).read_cost().spent_usd
        assert spent_usd > 0
        slurm.wait_for(job, "PENDING")
        slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm would wait for two minutes
        wait_until(lambda: trains_after(preempted_at), 400)
        # Less than the 120 s of --signal are left now.
        minutes = 1 + int(slurm.seconds_running(job) // 60)
        slurm.run("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
        slurm.wait_for(job, "PENDING")
        assert log.read_text().count("Interrupted: ") == 2
        slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now", "TimeLimit=30")
        end = slurm.wait_for(job, *ENDED, timeout_s=400)
        assert end["JobState"] == "COMPLETED", log.read_text()
        text = log.read_text()
        print(text)
    assert end["Restarts"] == "2"
    assert re.search(r"resumable at \d+ %", text)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert not list(tmp_path.glob("node*/tmp/raycap-*"))  # no files of Ray are left
    cost = SweepFolder.at(str(slurm.shared / "runs" / "queued")).read_cost()
    assert cost.spent_usd > spent_usd  # of all attempts
    found = results_in(slurm.shared / "runs")
    assert len(found) == 6
    assert {result.provenance.host for result in found.values()} == {"node1", "node2"}
    client = mlflow.MlflowClient(f"sqlite:///{slurm.shared}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("raycap").experiment_id])
    children = {run.data.tags["raycap.trial_id"]: run for run in runs if "raycap.trial_id" in run.data.tags}
    assert Counter(run.info.status for run in runs) == {"FINISHED": 7}
    for trial_id, result in found.items():
        steps = [evaluation.step for evaluation in result.evaluations]
        assert steps == sorted(set(steps))
        history = client.get_metric_history(children[trial_id].info.run_id, "train/exposures")
        assert [point.step for point in history] == steps
    summary = json.loads((slurm.shared / "runs" / "queued" / "summary.json").read_text())
    assert [trial["state"] for trial in summary["trials"]] == ["finished"] * 6

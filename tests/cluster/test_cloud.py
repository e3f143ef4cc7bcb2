"""Files for clusters in the cloud: templates are sound once decided, and every way to break one has its own clear fault."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from raycap import cli
from raycap.cluster.cloud.check import check
from raycap.cluster.cloud.document import ClusterDocument, read_documents
from raycap.cluster.cloud.machines import known_size
from raycap.cluster.cloud.templates import Template, render
from raycap.cluster.cloud.versions import Versions
from raycap.spec.document import SpecError
from tests.support.decided import decided

HERE = Versions.here()
SPECS = Path(__file__).parents[2] / "sweeps" / "specs"
SPEC = """\
# Does it fit?
name: fits
trial: {profiles: {num_profiles: 60}}
execution: {gpus_per_worker: 0.25, cpus_per_worker: 2}
storage: s3://physics/raycap
tracking: {uri: "http://127.0.0.1:5000"}
"""
LAUNCHED, MANIFESTS = [Template.AWS, Template.GCP], [Template.KUBERAY]


def told(path: Path, text: str, spec: str | None = None, *overrides: str) -> list[str]:
    """The faults of a file with this text, without its name."""
    path.write_text(text)
    return [str(fault).removeprefix(f"{path}:") for fault in check(str(path), spec, overrides).faults]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cluster.yaml"


@pytest.fixture
def spec(tmp_path: Path) -> str:
    (tmp_path / "fits.yaml").write_text(SPEC)
    return str(tmp_path / "fits.yaml")


@pytest.mark.parametrize("template", LAUNCHED + MANIFESTS)
def test_a_template_is_sound_once_every_decision_is_made_and_not_before(template: Template, file: Path) -> None:
    text = render(template, HERE)
    undecided = told(file, text)
    num_marks = sum("FILL" in line and not line.lstrip().startswith("#") for line in text.splitlines())
    assert len(undecided) == num_marks >= 5
    assert all("is still marked FILL, got " in fault for fault in undecided)
    assert told(file, decided(text)) == []


def test_what_is_still_the_templates_is_told_where_its_mark_is_gone(file: Path) -> None:
    without_marks = re.sub(r" *# FILL.*", "", render(Template.AWS, HERE))
    (fault,) = told(file, without_marks)
    assert "node_config.ImageId: is still the template's ami-00000000000000000" in fault


def test_how_many_trials_of_a_sweep_run_at_once_is_told(file: Path, spec: str) -> None:
    file.write_text(decided(render(Template.AWS, HERE)))
    assert check(str(file), spec).trials_at_once == 8 * 4  # four to a GPU, for which 8 CPUs are just enough
    assert check(str(file), spec, ("execution.cpus_per_worker=3",)).trials_at_once == 8 * 2
    assert check(str(file), spec, ("execution={num_workers: 8, gpus_per_worker: 1}",)).trials_at_once == 1


@pytest.mark.parametrize(
    ("name", "machine", "at_once"),
    [
        ("one_gpu", "g5.2xlarge {CPU: 8, GPU: 1}", 1),
        ("four_gpus", "g5.12xlarge {CPU: 48, GPU: 4}", 4),
        ("eight_gpus", "g5.48xlarge {CPU: 192, GPU: 8}", 1),
        ("eight_gpus execution.num_workers=2", "g5.48xlarge {CPU: 192, GPU: 8}", 4),
    ],
)
def test_the_shipped_sweeps_for_gpus_fill_machines_of_that_many(
    name: str, machine: str, at_once: int, file: Path
) -> None:
    kind, _, resources = machine.partition(" ")
    text = decided(render(Template.AWS, HERE)).replace("max_workers: 8", "max_workers: 1")
    file.write_text(text.replace("g5.2xlarge", kind).replace("{ CPU: 8, GPU: 1 }", resources))
    spec, *overrides = name.split()
    places = ("storage=s3://physics/raycap", "tracking.uri=http://127.0.0.1:5000")
    report = check(str(file), str(SPECS / f"{spec}.yaml"), (*places, *overrides))
    assert (report.faults, report.trials_at_once) == ([], at_once)


def test_the_dockerfile_is_of_the_same_ray_and_comes_with_the_manifest() -> None:
    dockerfile = render(Template.DOCKERFILE, HERE)
    assert f"FROM rayproject/ray:{HERE.tag}-gpu\n" in dockerfile
    manifest = render(Template.KUBERAY, HERE)
    assert "".join(f"# {line}\n" for line in dockerfile.splitlines()) in manifest
    assert [document["kind"] for document in yaml.safe_load_all(manifest) if document] == [
        "RayJob",
        "Deployment",
        "Service",
    ]


BROKEN = {
    "a leftover mark": ("us-east-1", "us-east-1 # FILL", "provider.region: is still marked FILL, got us-east-1"),
    "a misspelt field": ("idle_timeout_minutes", "idle_timeout_minuts",
                         "idle_timeout_minuts: unknown field; did you mean 'idle_timeout_minutes'?"),
    "a wrong type": ("max_workers: 8\nup", "max_workers: many\nup", 'max_workers: must be of type integer, got "many"'),
    "a head that trains": ("{ CPU: 0 }", "{ CPU: 4 }", "available_node_types.head.resources.CPU: must be 0 on the head"),
    "a head that is auto-detected": ("{ CPU: 0 }", "{}", "must be 0 on the head, or trials train on it"),
    "another Ray": (f"ray:{HERE.tag}", f"ray:2.9.3-py{HERE.python.replace('.', '')}",
                    f"docker.image: must bring this environment's Ray {HERE.ray}"),
    "another Python": (HERE.tag, f"{HERE.ray}-py39", f"and Python {HERE.python}, got rayproject/ray:{HERE.ray}-py39-gpu"),
    "whatever Ray is the latest": (f":{HERE.tag}-gpu", ":latest-gpu", "must be pinned to a Ray and a Python"),
    "no image of Ray": (f"docker:\n  image: rayproject/ray:{HERE.tag}-gpu\n  container_name: raycap\n", "",
                        "setup_commands: nothing pins Ray"),
    "a nightly Ray": ('pip install --quiet "$HOME', 'pip install -U ray-wheels/latest/ray.whl "$HOME',
                      "setup_commands[0]: must not install a nightly Ray"),
    "an unpinned Ray": ('pip install --quiet "$HOME', "pip install -U 'ray[default]' \"$HOME",
                        f"setup_commands[0]: must install this environment's Ray {HERE.ray}, got ray[default]"),
    "no setup": ('setup_commands:\n  - pip install --quiet "$HOME/raycap[aws]"\n', "",
                 "setup_commands: must be given, or Ray takes a default"),
    "no image of a machine": ("      ImageId: *image\n", "", "gpu_spot.node_config.ImageId: must name an image"),
    "spot in name alone": ("      InstanceMarketOptions: { MarketType: spot }\n", "",
                           "InstanceMarketOptions: gpu_spot is called spot but bought on demand"),
    "a market that is none": ("MarketType: spot", "MarketType: bazaar", "MarketType: must be one of "),
    "a head on spot": ("      InstanceType: m6i.xlarge\n",
                       "      InstanceType: m6i.xlarge\n      InstanceMarketOptions: { MarketType: spot }\n",
                       "head.node_config.InstanceMarketOptions: the head must not be spot"),
    "GPUs that the machine has not": ("g5.2xlarge", "g5.12xlarge", "resources.GPU: a g5.12xlarge has 4 GPUs, got 1"),
    "CPUs that the machine has not": ("g5.2xlarge", "g5.xlarge", "resources.CPU: a g5.xlarge has 4 vCPUs, got 8"),
    "a field that EC2 has not": ("      InstanceType: g5", "      InstanceTyp: g5",
                                 "InstanceTyp: EC2 knows no such field; did you mean 'InstanceType'?"),
    "a value that EC2 has not": ("VolumeSize: 200,", "VolumeSize: big,", "Ebs.VolumeSize: EC2 takes int there, got big"),
    "a head that never scales": (" --autoscaling-config=~/ray_bootstrap_config.yaml", "",
                                 "head_start_ray_commands: none starts Ray with --autoscaling-config"),
    "machines that find no head": (" --address=$RAY_HEAD_IP:6379", "",
                                   "worker_start_ray_commands: none starts Ray with --address"),
    "a head that is none": ("head_node_type: head", "head_node_type: hed", "Ray refuses it: `head_node_type` must be"),
    "a field that stands twice": ("upscaling_speed: 2.0", "upscaling_speed: 2.0\nupscaling_speed: 9", "stands twice"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_for_aws_is_told_its_own_fault_where_it_stands(case: str, file: Path) -> None:
    if "EC2" in case or "market" in case:
        pytest.importorskip("botocore")
    old, new, fault = BROKEN[case]
    sound = decided(render(Template.AWS, HERE))
    assert old in sound
    broken = sound.replace(old, new)
    faults = told(file, broken)
    mine = [line for line in faults if fault in line]
    assert mine, faults
    assert len(faults) - len(mine) <= 1, "one mistake is told once, or twice where it has two sides"
    pairs = enumerate(zip(broken.splitlines(), sound.splitlines(), strict=False), 1)
    changed = min(number for number, (ours, before) in pairs if ours != before)
    assert "Ray refuses" in fault or not new or abs(int(mine[0].partition(":")[0]) - changed) <= 4


def test_all_faults_are_told_at_once(file: Path) -> None:
    broken = decided(render(Template.AWS, HERE))
    for case in ("a leftover mark", "a misspelt field", "a head that trains", "another Ray", "spot in name alone",
                 "CPUs that the machine has not", "a field that EC2 has not"):  # fmt: skip
        broken = broken.replace(*BROKEN[case][:2])
    faults = told(file, broken)
    for case in ("a leftover mark", "a misspelt field", "a head that trains", "another Ray", "spot in name alone"):
        assert any(BROKEN[case][2] in fault for fault in faults), case
    assert [int(fault.partition(":")[0]) for fault in faults] == sorted(int(f.partition(":")[0]) for f in faults)


BROKEN_MANIFESTS = {
    "a head that trains": ('num-cpus: "0"', 'num-cpus: "4"', "rayStartParams.num-cpus: must be 0 on the head"),
    "no word about the head's CPUs": ('num-cpus: "0", ', "", "must be 0 on the head"),
    "another Ray": (f"rayVersion: {HERE.ray}", "rayVersion: 2.9.3", "rayVersion: must be this environment's Ray"),
    "an image of another Ray": (f"raycap:{HERE.tag}", "raycap:2.9.3-py39", "containers[0].image: must bring"),
    "an image of any day": (f"raycap:{HERE.tag}", "raycap:latest", "containers[0].image: must be pinned"),
    "no autoscaler": ("enableInTreeAutoscaling: true", "enableInTreeAutoscaling: false", "must be true, or GPU pods"),
    "a misspelt field": ("minReplicas", "minReplica", "unknown field; did you mean 'minReplicas'?"),
    "spot in name alone": ("eks.amazonaws.com/capacityType: SPOT", "pool: gpus",
                           "nodeSelector: gpu-spot is called spot but bought on demand"),
    "storage of one machine": ("s3://physics/raycap", "runs", "spec.entrypoint: storage must be one place for up to 9"),
    "MLflow of one machine": ("http://mlflow:5000", "sqlite:///mlflow.db", "spec.entrypoint: tracking.uri must be a server"),
    "no right to the bucket": ("            serviceAccountName: *account\n", "",
                               "these machines have no right to any bucket"),
    "more GPUs than the node has": ('{ eks.amazonaws.com/capacityType: SPOT }',
                                    '{ capacityType: SPOT, node.kubernetes.io/instance-type: m6i.2xlarge }',
                                    "a m6i.2xlarge has 0 GPUs, got 1"),
    "no job": ("entrypoint:", "entrypont:", "entrypont: unknown field; did you mean 'entrypoint'?"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_MANIFESTS)
def test_a_broken_manifest_is_told_its_own_fault(case: str, file: Path) -> None:
    old, new, fault = BROKEN_MANIFESTS[case]
    sound = decided(render(Template.KUBERAY, HERE))
    assert old in sound
    faults = told(file, sound.replace(old, new))
    assert any(fault in line for line in faults), faults


def test_a_broken_file_for_google_is_told_its_faults(file: Path, spec: str) -> None:
    sound = decided(render(Template.GCP, HERE))
    assert any("must lie in the region" in fault for fault in told(file, sound.replace("us-central1-a", "us-east1-b")))
    demanded = sound.replace("provisioningModel: SPOT, ", "")
    assert any("gpu_spot is called spot but bought on demand" in fault for fault in told(file, demanded))
    other = sound.replace("machineType: g2-standard-8", "machineType: g2-standard-24")
    assert any("a g2-standard-24 has 2 GPUs, got 1" in fault for fault in told(file, other))
    assert told(file, sound, spec, "storage=gs://physics/raycap") == []
    (fault,) = told(file, sound, spec)
    assert "must reach s3://physics/raycap, but these machines may reach gcs, gs://" in fault


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("execution.gpus_per_worker=2", "each with 2 CPUs and 2 GPUs of one machine (together 2 and 2)"),
        ("execution={num_workers: 9, gpus_per_worker: 1}",
         "but there may be 8 x 8 CPUs and 1 GPUs, 8 machines in all: room for 8"),
        ("storage=runs", "storage: must be one place for up to 9 machines, got the folder runs"),
        ("tracking.uri=sqlite:///mlflow.db", "tracking.uri: must be a server for up to 9 machines"),
        ("tracking.uri=mlruns", "tracking.uri: must be a server for up to 9 machines, got mlruns"),
        ("execution.gpus_per_worker=-1", "execution.gpus_per_worker: should be greater than or equal to 0, got -1"),
    ],
)  # fmt: skip
def test_a_sweep_that_cannot_run_there_is_told(override: str, fault: str, file: Path, spec: str) -> None:
    (line,) = told(file, decided(render(Template.AWS, HERE)), spec, override)
    assert fault in line


def test_machines_may_do_without_images_where_commands_pin_ray_and_python(file: Path) -> None:
    sound = decided(render(Template.AWS, HERE))
    bare = sound.replace(*BROKEN["no image of Ray"][:2])
    install = f"uv venv --python {HERE.python} && uv pip install 'ray[default,train,tune]=={HERE.ray}'"
    assert told(file, bare.replace("pip install --quiet", f"{install} &&")) == []
    (fault,) = told(file, bare.replace("pip install --quiet", f"{install.replace(HERE.python, '3.8')} &&"))
    assert f"must take this environment's Python {HERE.python}, got --python 3.8" in fault


@pytest.mark.parametrize(
    ("machine_type", "size"),
    [
        ("g5.2xlarge", (8, 1)), ("g5.48xlarge", (192, 8)), ("g6e.12xlarge", (48, 4)), ("p4d.24xlarge", (96, 8)),
        ("p5.48xlarge", (192, 8)), ("p3.8xlarge", (32, 4)), ("m6i.large", (2, 0)), ("c7i.xlarge", (4, 0)),
        ("g2-standard-48", (48, 4)), ("a2-highgpu-4g", (48, 4)), ("a3-highgpu-8g", (208, 8)), ("n2-standard-4", (4, 0)),
        ("x9.huge", None), ("", None),
    ],
)  # fmt: skip
def test_well_known_machines_are_known(machine_type: str, size: tuple[int, int] | None) -> None:
    assert known_size(machine_type) == size


def test_accelerators_count_where_they_are_added() -> None:
    assert known_size("n1-standard-8", 2) == (8, 2)


@pytest.mark.parametrize("text", ["", "- a list", "a: [", "cluster_name: &a [*b]", "\x00", "a: 2001-99-99"])
def test_what_describes_no_cluster_is_told_in_a_line(text: str, file: Path) -> None:
    file.write_text(text)
    with pytest.raises(SpecError) as caught:
        check(str(file))
    assert str(caught.value).startswith(f"{file}:")


def put(tree: Any, place: tuple[str | int, ...], value: Any) -> None:
    for part in place[:-1]:
        tree = tree[part]
    tree[place[-1]] = value


@pytest.mark.parametrize("template", LAUNCHED + MANIFESTS)
def test_whatever_stands_anywhere_is_a_fault_and_never_a_crash(template: Template, file: Path, spec: str) -> None:
    (document, *_), _ = read_documents("", decided(render(template, HERE)))
    dice = random.Random(0)
    for _ in range(80):
        place, strange = (
            dice.choice([p for p in document.lines if p]),
            dice.choice([None, -3, "x", [], {}, [{}], 1.5, True]),
        )
        broken = json.loads(json.dumps(document.tree))
        put(broken, place, strange)
        told(file, yaml.safe_dump(broken), spec)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["cluster", *arguments])


def test_the_commands_print_check_and_say_it_by_their_exit_code(file: Path, spec: str, tmp_path: Path) -> None:
    for template in Template:
        assert run("template", template).output == render(template, HERE)
    file.write_text(decided(render(Template.AWS, HERE)))
    done = run("check", str(file), "--spec", spec)
    assert done.exit_code == 0
    assert "at most 8 x 8 CPUs and 1 GPUs" in done.output
    assert f"32 trials of {spec} at once" in done.output
    file.write_text(file.read_text().replace("{ CPU: 0 }", "{ CPU: 4 }"))
    done = run("check", str(file), "--spec", spec, "storage=runs")
    assert done.exit_code == 2
    assert len(done.output.splitlines()) == 2
    done = run("check", str(file), "--json")
    assert done.exit_code == 2
    (fault,) = json.loads(done.stdout)["faults"]
    assert fault["field"] == "available_node_types.head.resources.CPU"
    assert fault["where"].startswith(f"{file}:")


def test_an_unknown_template_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["raycap", "cluster", "template", "azure"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "must be one of aws, gcp, kuberay, dockerfile, got azure" in capsys.readouterr().err


@pytest.mark.parametrize("template", LAUNCHED)
def test_ray_takes_a_launcher_template_as_it_would_in_ray_up(template: Template) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(decided(render(template, HERE))))
    validate_config(config)
    assert "nightly" not in json.dumps(config)
    assert "ray-wheels" not in json.dumps(config)


def test_places_are_lines_of_the_file() -> None:
    (document,), faults = read_documents("f", "a:\n  - b: 1\n    c: 2\n  - d\n")
    assert faults == []
    assert isinstance(document, ClusterDocument)
    assert {place: document.line(place) for place in [("a",), ("a", 0, "b"), ("a", 0, "c"), ("a", 1)]} == {
        ("a",): 1, ("a", 0, "b"): 2, ("a", 0, "c"): 3, ("a", 1): 4,
    }  # fmt: skip
    assert document.line(("a", 0, "missing")) == 2

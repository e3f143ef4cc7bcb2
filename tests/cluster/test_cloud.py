"""Tests of cluster files: complete templates have no faults, and every broken file has its own fault."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from raycap import cli
from raycap.__main__ import main
from raycap.cluster.cloud.check import check_cluster_file
from raycap.cluster.cloud.document import ClusterDocument, Fault, read_documents
from raycap.cluster.cloud.machines import known_size
from raycap.cluster.cloud.templates import Template, render_template
from raycap.cluster.cloud.versions import Versions
from raycap.spec.document import SpecError
from tests.support.decided import decided

HERE = Versions.of_environment()
SPECS = Path(__file__).parents[2] / "sweeps" / "specs"
SPEC = """\
# Fits on the machines of the templates.
name: fits
trial: {profiles: {num_profiles: 60}}
execution: {gpus_per_worker: 0.25, cpus_per_worker: 2}
storage: s3://physics/raycap
tracking: {uri: "http://127.0.0.1:5000"}
"""
LAUNCHED, MANIFESTS = [Template.AWS, Template.GCP], [Template.KUBERAY]


def faults_of(path: Path, text: str, spec: str | None = None, *overrides: str) -> list[Fault]:
    path.write_text(text)
    return check_cluster_file(str(path), spec, overrides).faults


def line_of(fault: Fault) -> int:
    return int(fault.where.rpartition(":")[2])


def is_fault(fault: Fault, field: str, *values: str) -> bool:
    """Whether the name of the fault's field ends with `field` and its rule has all of `values`."""
    return fault.field.endswith(field) and all(value in fault.rule for value in values)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cluster.yaml"


@pytest.fixture
def spec(tmp_path: Path) -> str:
    (tmp_path / "fits.yaml").write_text(SPEC)
    return str(tmp_path / "fits.yaml")


@pytest.mark.parametrize("template", LAUNCHED + MANIFESTS)
def test_a_template_has_faults_only_for_its_marks(template: Template, file: Path) -> None:
    text = render_template(template, HERE)
    marked = [
        number
        for number, line in enumerate(text.splitlines(), 1)
        if "FILL" in line and not line.lstrip().startswith("#")
    ]
    faults = faults_of(file, text)
    assert [line_of(fault) for fault in faults] == marked
    assert len(marked) >= 5
    assert all("FILL" in fault.rule for fault in faults)
    assert faults_of(file, decided(text)) == []


def test_a_placeholder_without_its_mark_is_a_fault(file: Path) -> None:
    without_marks = re.sub(r" *# FILL.*", "", render_template(Template.AWS, HERE))
    (fault,) = faults_of(file, without_marks)
    assert is_fault(fault, "node_config.ImageId", "ami-00000000000000000")


def test_the_report_has_the_number_of_trials_that_run_at_once(file: Path, spec: str) -> None:
    file.write_text(decided(render_template(Template.AWS, HERE)))
    assert (
        check_cluster_file(str(file), spec).trials_at_once == 8 * 4
    )  # 4 trials on each GPU, which use all 8 CPUs of the machine
    assert check_cluster_file(str(file), spec, ("execution.cpus_per_worker=3",)).trials_at_once == 8 * 2
    assert check_cluster_file(str(file), spec, ("execution={num_workers: 8, gpus_per_worker: 1}",)).trials_at_once == 1


@pytest.mark.parametrize(
    ("name", "machine", "at_once"),
    [
        ("one_gpu", "g5.2xlarge {CPU: 8, GPU: 1}", 1),
        ("four_gpus", "g5.12xlarge {CPU: 48, GPU: 4}", 4),
        ("eight_gpus", "g5.48xlarge {CPU: 192, GPU: 8}", 1),
        ("eight_gpus execution.num_workers=2", "g5.48xlarge {CPU: 192, GPU: 8}", 4),
    ],
)
def test_the_sweeps_for_gpus_use_every_gpu_of_their_machine(name: str, machine: str, at_once: int, file: Path) -> None:
    machine_type, _, resources = machine.partition(" ")
    text = decided(render_template(Template.AWS, HERE)).replace("max_workers: 8", "max_workers: 1")
    file.write_text(text.replace("g5.2xlarge", machine_type).replace("{ CPU: 8, GPU: 1 }", resources))
    spec, *overrides = name.split()
    shared = ("storage=s3://physics/raycap", "tracking.uri=http://127.0.0.1:5000")
    report = check_cluster_file(str(file), str(SPECS / f"{spec}.yaml"), (*shared, *overrides))
    assert (report.faults, report.trials_at_once) == ([], at_once)


def test_the_dockerfile_has_the_same_ray_and_is_part_of_the_manifest() -> None:
    dockerfile = render_template(Template.DOCKERFILE, HERE)
    assert f"FROM rayproject/ray:{HERE.tag}-gpu\n" in dockerfile
    manifest = render_template(Template.KUBERAY, HERE)
    assert "".join(f"# {line}\n" for line in dockerfile.splitlines()) in manifest
    assert [document["kind"] for document in yaml.safe_load_all(manifest) if document] == [
        "RayJob",
        "Deployment",
        "Service",
        "NetworkPolicy",
    ]


# Case: the text to replace, its replacement, the field of the fault, and values that its rule must have.
BROKEN: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    "a mark that is left": ("us-east-1", "us-east-1 # FILL", "provider.region", ("FILL", "us-east-1")),
    "a misspelt field": ("idle_timeout_minutes", "idle_timeout_minuts", "idle_timeout_minuts", ("idle_timeout_minutes",)),
    "a wrong type": ("max_workers: 8\nup", "max_workers: many\nup", "max_workers", ("integer", "many")),
    "a head with CPUs": ("{ CPU: 0 }", "{ CPU: 4 }", "head.resources.CPU", ("0", "4")),
    "a head whose CPUs are detected": ("{ CPU: 0 }", "{}", "head.resources.CPU", ("0",)),
    "another Ray": (f"ray:{HERE.tag}", f"ray:2.9.3-py{HERE.python.replace('.', '')}", "docker.image", (HERE.ray, "2.9.3")),
    "another Python": (HERE.tag, f"{HERE.ray}-py39", "docker.image", (HERE.python, f"rayproject/ray:{HERE.ray}-py39-gpu")),
    "an image without a version": (f":{HERE.tag}-gpu", ":latest-gpu", "docker.image", ("latest-gpu", HERE.tag)),
    "no image of Ray": (f"docker:\n  image: rayproject/ray:{HERE.tag}-gpu\n  container_name: raycap\n", "",
                        "setup_commands", ("Ray", HERE.ray)),
    "a nightly Ray": ('pip install --quiet "$HOME', 'pip install -U ray-wheels/latest/ray.whl "$HOME',
                      "setup_commands[1]", ("nightly", "ray-wheels/latest/ray.whl")),
    "a Ray without a version": ('pip install --quiet "$HOME', "pip install -U 'ray[default]' \"$HOME",
                                "setup_commands[1]", (HERE.ray, "ray[default]")),
    "no setup commands": (
        'setup_commands:\n  - chmod 600 ~/.ray/auth_token\n  - pip install --quiet "$HOME/raycap[aws]"\n', "",
        "setup_commands", ("missing",)),
    "no image of a machine": ("      ImageId: *image\n", "", "gpu_spot.node_config.ImageId", ("missing",)),
    "on-demand machines named spot": ("      InstanceMarketOptions: { MarketType: spot }\n", "",
                                      "gpu_spot.node_config.InstanceMarketOptions", ("gpu_spot", "MarketType: spot")),
    "an unknown market": ("MarketType: spot", "MarketType: bazaar", "MarketType", ("spot", "bazaar")),
    "a spot machine as head": ("      InstanceType: m6i.xlarge\n",
                               "      InstanceType: m6i.xlarge\n      InstanceMarketOptions: { MarketType: spot }\n",
                               "head.node_config.InstanceMarketOptions", ("spot",)),
    "another number of GPUs": ("g5.2xlarge", "g5.12xlarge", "resources.GPU", ("g5.12xlarge", "4", "got 1")),
    "more CPUs than the machine has": ("g5.2xlarge", "g5.xlarge", "resources.CPU", ("g5.xlarge", "4", "got 8")),
    "a field unknown to EC2": ("      InstanceType: g5", "      InstanceTyp: g5", "InstanceTyp", ("EC2", "'InstanceType'")),
    "a value of a wrong type for EC2": ("VolumeSize: 200,", "VolumeSize: big,", "Ebs.VolumeSize", ("EC2", "int", "big")),
    "a head without autoscaler": (" --autoscaling-config=~/ray_bootstrap_config.yaml", "",
                                  "head_start_ray_commands", ("--autoscaling-config",)),
    "workers without a head": (" --address=$RAY_HEAD_IP:6379", "", "worker_start_ray_commands", ("--address",)),
    "an unknown type of the head": ("head_node_type: head", "head_node_type: hed", "", ("`head_node_type`",)),
    "a duplicate key": ("upscaling_speed: 2.0", "upscaling_speed: 2.0\nupscaling_speed: 9", "upscaling_speed", ()),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_for_aws_has_a_fault_at_its_line(case: str, file: Path) -> None:
    if "EC2" in case or "market" in case:
        pytest.importorskip("botocore")
    old, new, field, values = BROKEN[case]
    sound = decided(render_template(Template.AWS, HERE))
    assert old in sound
    broken = sound.replace(old, new)
    faults = faults_of(file, broken)
    expected = [fault for fault in faults if is_fault(fault, field, *values)]
    assert expected, faults
    assert len(faults) - len(expected) <= 1  # a second fault is possible where two fields contradict each other
    pairs = enumerate(zip(broken.splitlines(), sound.splitlines(), strict=False), 1)
    changed = min(number for number, (line, before) in pairs if line != before)
    assert not field or not new or abs(line_of(expected[0]) - changed) <= 4


def test_all_faults_are_reported_at_once_and_in_order(file: Path) -> None:
    broken = decided(render_template(Template.AWS, HERE))
    cases = ("a mark that is left", "a misspelt field", "a head with CPUs", "another Ray", "on-demand machines named spot",
             "more CPUs than the machine has")  # fmt: skip
    for case in cases:
        broken = broken.replace(*BROKEN[case][:2])
    faults = faults_of(file, broken)
    for case in cases:
        _, _, field, values = BROKEN[case]
        assert any(is_fault(fault, field, *values) for fault in faults), case
    assert [line_of(fault) for fault in faults] == sorted(map(line_of, faults))


IMAGE = "containers[0].image"
BROKEN_MANIFESTS: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    "a head with CPUs": ('num-cpus: "0"', 'num-cpus: "4"', "rayStartParams.num-cpus", ("0", "4")),
    "a head whose CPUs are detected": ('num-cpus: "0", ', "", "rayStartParams.num-cpus", ("0",)),
    "another Ray": (f"rayVersion: {HERE.ray}", "rayVersion: 2.9.3", "rayVersion", (HERE.ray, "2.9.3")),
    "an image of another Ray": (f"raycap:{HERE.tag}", "raycap:2.9.3-py39", IMAGE, (HERE.ray, "2.9.3-py39")),
    "an image without a version": (f"raycap:{HERE.tag}", "raycap:latest", IMAGE, ("raycap:latest",)),
    "no autoscaler": ("enableInTreeAutoscaling: true", "enableInTreeAutoscaling: false",
                      "enableInTreeAutoscaling", ("true",)),
    "a misspelt field": ("minReplicas", "minReplica", "minReplica", ("'minReplicas'",)),
    "on-demand pods named spot": ("eks.amazonaws.com/capacityType: SPOT", "pool: gpus", "nodeSelector", ("gpu-spot",)),
    "storage of one machine": ("s3://physics/raycap", "runs", "spec.entrypoint", ("storage", "runs", "9 machines")),
    "MLflow of one machine": ("http://mlflow:5000", "sqlite:///mlflow.db",
                              "spec.entrypoint", ("tracking.uri", "sqlite:///mlflow.db")),
    "no access to the bucket": ("            serviceAccountName: *account\n", "", "workerGroupSpecs[0]", ("s3://physics/raycap",)),
    "more GPUs than the node has": ('{ eks.amazonaws.com/capacityType: SPOT }',
                                    '{ capacityType: SPOT, node.kubernetes.io/instance-type: m6i.2xlarge }',
                                    "nvidia.com/gpu", ("m6i.2xlarge", "0", "got 1")),
    "no entrypoint": ("entrypoint:", "entrypont:", "entrypont", ("'entrypoint'",)),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN_MANIFESTS)
def test_a_broken_manifest_has_its_fault(case: str, file: Path) -> None:
    old, new, field, values = BROKEN_MANIFESTS[case]
    sound = decided(render_template(Template.KUBERAY, HERE))
    assert old in sound
    faults = faults_of(file, sound.replace(old, new))
    assert any(is_fault(fault, field, *values) for fault in faults), faults


def test_a_broken_file_for_google_has_its_faults(file: Path, spec: str) -> None:
    sound = decided(render_template(Template.GCP, HERE))
    (zone,) = faults_of(file, sound.replace("us-central1-a", "us-east1-b"))
    assert is_fault(zone, "provider.availability_zone", "us-central1", "us-east1-b")
    (market,) = faults_of(file, sound.replace("provisioningModel: SPOT, ", ""))
    assert is_fault(market, "gpu_spot.node_config.scheduling", "gpu_spot")
    (size,) = faults_of(file, sound.replace("machineType: g2-standard-8", "machineType: g2-standard-24"))
    assert is_fault(size, "resources.GPU", "g2-standard-24", "2", "got 1")
    assert faults_of(file, sound, spec, "storage=gs://physics/raycap") == []
    (access,) = faults_of(file, sound, spec)
    assert is_fault(access, "available_node_types.gpu_spot", "s3://physics/raycap", "gs://")


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("execution.gpus_per_worker=2", ["fits", "2 CPUs and 2 GPUs"]),
        (
            "execution={num_workers: 9, gpus_per_worker: 1}",
            ["fits", "8 x 8 CPUs and 1 GPUs", "8 machines", "8 workers"],
        ),
        ("storage=runs", ["storage", "9 machines", "got runs"]),
        ("tracking.uri=sqlite:///mlflow.db", ["tracking.uri", "got sqlite:///mlflow.db"]),
        ("tracking.uri=mlruns", ["tracking.uri", "mlruns"]),
        ("execution.gpus_per_worker=-1", ["execution.gpus_per_worker", "-1"]),
    ],
)
def test_a_sweep_that_cannot_run_on_the_cluster_is_a_fault(
    override: str, values: list[str], file: Path, spec: str
) -> None:
    (fault,) = faults_of(file, decided(render_template(Template.AWS, HERE)), spec, override)
    assert all(value in str(fault) for value in values)


def test_commands_that_pin_ray_and_python_replace_an_image(file: Path) -> None:
    sound = decided(render_template(Template.AWS, HERE))
    bare = sound.replace(*BROKEN["no image of Ray"][:2])
    install = f"uv venv --python {HERE.python} && uv pip install 'ray[default,train,tune]=={HERE.ray}'"
    assert faults_of(file, bare.replace("pip install --quiet", f"{install} &&")) == []
    (fault,) = faults_of(file, bare.replace("pip install --quiet", f"{install.replace(HERE.python, '3.8')} &&"))
    assert is_fault(fault, "setup_commands[1]", HERE.python, "--python 3.8")


@pytest.mark.parametrize(
    ("machine_type", "size"),
    [
        ("g5.2xlarge", (8, 1)), ("g5.48xlarge", (192, 8)), ("g6e.12xlarge", (48, 4)), ("p4d.24xlarge", (96, 8)),
        ("p5.48xlarge", (192, 8)), ("p3.8xlarge", (32, 4)), ("m6i.large", (2, 0)), ("c7i.xlarge", (4, 0)),
        ("g2-standard-48", (48, 4)), ("a2-highgpu-4g", (48, 4)), ("a3-highgpu-8g", (208, 8)), ("n2-standard-4", (4, 0)),
        ("x9.huge", None), ("", None),
    ],
)  # fmt: skip
def test_machine_types_have_their_cpus_and_gpus(machine_type: str, size: tuple[int, int] | None) -> None:
    assert known_size(machine_type) == size


def test_attached_accelerators_are_counted() -> None:
    assert known_size("n1-standard-8", 2) == (8, 2)


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))


@pytest.mark.parametrize(
    "text",
    ["", "- a list", "a: [", "cluster_name: &a [*b]", "\x00", "a: 2001-99-99", "a: &a [*a]", BOMB, "a: " + "[" * 5000],
    ids=range(9),
)
def test_a_file_that_is_no_cluster_raises_an_error_of_one_line(text: str, file: Path) -> None:
    file.write_text(text)
    with pytest.raises(SpecError) as caught:
        check_cluster_file(str(file))
    assert str(caught.value).startswith(f"{file}:")


def put(tree: Any, path: tuple[str | int, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree[key]
    tree[path[-1]] = value


@pytest.mark.parametrize("template", LAUNCHED + MANIFESTS)
def test_random_values_anywhere_never_crash_the_check(template: Template, file: Path, spec: str) -> None:
    (document, *_), _ = read_documents("", decided(render_template(template, HERE)))
    rng = random.Random(0)
    for _ in range(80):
        path = rng.choice([path for path in document.lines if path])
        value = rng.choice([None, -3, "x", [], {}, [{}], 1.5, True])
        broken = json.loads(json.dumps(document.tree))
        put(broken, path, value)
        faults_of(file, yaml.safe_dump(broken), spec)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["cluster", *arguments])


def test_the_commands_print_templates_and_exit_with_2_on_faults(file: Path, spec: str, tmp_path: Path) -> None:
    for template in Template:
        assert run("template", template).output == render_template(template, HERE)
    file.write_text(decided(render_template(Template.AWS, HERE)))
    done = run("check", str(file), "--spec", spec)
    assert done.exit_code == 0
    assert done.output.startswith(f"{file}: ")
    assert all(text in done.output for text in ("8 x 8 CPUs and 1 GPUs", f"32 trials of {spec}"))
    file.write_text(file.read_text().replace("{ CPU: 0 }", "{ CPU: 4 }"))
    done = run("check", str(file), "--spec", spec, "storage=runs")
    assert done.exit_code == 2
    assert len(done.output.splitlines()) == 2
    done = run("check", str(file), "--json")
    assert done.exit_code == 2
    (fault,) = json.loads(done.stdout)["faults"]
    assert fault["field"] == "available_node_types.head.resources.CPU"
    assert fault["where"].startswith(f"{file}:")


def test_an_unknown_template_is_an_error(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["raycap", "cluster", "template", "azure"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    message = capfd.readouterr().err
    assert all(value in message for value in (", ".join(Template), "azure"))


@pytest.mark.parametrize("template", LAUNCHED)
def test_the_validation_of_ray_up_accepts_a_template(template: Template) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(decided(render_template(template, HERE))))
    validate_config(config)
    assert "nightly" not in json.dumps(config)
    assert "ray-wheels" not in json.dumps(config)


def test_values_have_the_lines_of_the_file() -> None:
    (document,), faults = read_documents("f", "a:\n  - b: 1\n    c: 2\n  - d\n")
    assert faults == []
    assert isinstance(document, ClusterDocument)
    assert {path: document.line(path) for path in [("a",), ("a", 0, "b"), ("a", 0, "c"), ("a", 1)]} == {
        ("a",): 1, ("a", 0, "b"): 2, ("a", 0, "c"): 3, ("a", 1): 4,
    }  # fmt: skip
    assert document.line(("a", 0, "missing")) == 2


@pytest.mark.parametrize(
    "text",
    [
        "a: {y: no, z: 0x1F, b: 1_000, c: 1:30, d: .5, e: 1e3, f: 1.0e+3, g: ~, h: '5', i: !!str 5, j: 2020-01-01}",
        "base: &base {cpu: 1, memory: 2}\nlist: [*base, {<<: *base, cpu: 4}]\nboth: {<<: [{disk: 7}, *base], gpu: 1}",
        "a: &x [1, &y 2]\nb: [*x, *y]\n---\na: &x 3\nb: *x\n",
        'run: |\n  one\n  two\nfolded: >-\n  three\n  four\nquoted: "tab\\t"\nempty:\n',
        *(render_template(template, HERE) for template in (*LAUNCHED, *MANIFESTS)),
    ],
)
def test_values_are_those_that_ray_and_kubernetes_read(text: str) -> None:
    def with_text_keys(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                str(key).lower() if isinstance(key, bool) else str(key): with_text_keys(value[key]) for key in value
            }
        return [with_text_keys(one) for one in value] if isinstance(value, list) else value

    documents, faults = read_documents("cluster.yaml", text)
    assert not faults
    expected = [tree for tree in yaml.safe_load_all(text) if tree is not None]
    assert [document.tree for document in documents] == [with_text_keys(tree) for tree in expected]

"""Cluster files that Kubernetes, KubeRay, EC2 or Google Cloud would refuse are faults; those that they accept are not."""

from pathlib import Path

import pytest

from raycap.cluster.cloud.check import check_cluster_file
from raycap.cluster.cloud.templates import Template, render_template
from raycap.cluster.cloud.versions import Versions
from tests.support.decided import decided
from tests.support.refused_files import (
    ACCOUNT,
    AWS,
    BY_SCHEMA,
    GCP,
    HEAD_LIMITS,
    KUBERAY,
    LIMITED,
    REQUESTS,
    SCHEDULING,
)

HERE = Versions.of_environment()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cluster.yaml"


def check_is_found(template: Template, case: tuple[str, str, str, tuple[str, ...]], file: Path) -> None:
    old, new, field, values = case
    sound = render_template(template, HERE)
    sound = sound if old in sound else decided(sound)
    assert old in sound
    broken = decided(sound.replace(old, new))
    file.write_text(broken)
    found = check_cluster_file(str(file)).faults
    expected = [
        fault for fault in found if fault.field.endswith(field) and all(value in fault.rule for value in values)
    ]
    assert expected, list(map(str, found))
    pairs = enumerate(zip(broken.splitlines(), decided(sound).splitlines(), strict=False), 1)
    changed = min(number for number, (line, before) in pairs if line != before)
    assert min(abs(int(fault.where.rpartition(":")[2]) - changed) for fault in expected) <= 4


@pytest.mark.parametrize("case", KUBERAY)
def test_what_kubernetes_would_refuse_is_a_fault(case: str, file: Path) -> None:
    check_is_found(Template.KUBERAY, KUBERAY[case], file)


@pytest.mark.parametrize("case", AWS)
def test_what_ec2_would_refuse_is_a_fault(case: str, file: Path) -> None:
    pytest.importorskip("botocore")
    check_is_found(Template.AWS, AWS[case], file)


@pytest.mark.parametrize("case", GCP)
def test_what_google_would_refuse_is_a_fault(case: str, file: Path) -> None:
    check_is_found(Template.GCP, GCP[case], file)


@pytest.mark.parametrize("case", BY_SCHEMA)
def test_what_the_compute_api_would_refuse_is_a_fault(case: str, file: Path) -> None:
    pytest.importorskip("googleapiclient")
    check_is_found(Template.GCP, BY_SCHEMA[case], file)


CLUSTER_ALONE = """\
apiVersion: ray.io/v1
kind: RayCluster
metadata: { name: alone, namespace: research, labels: { team: physics, example.com/owner: "" } }
spec:
  rayVersion: {ray}
  enableInTreeAutoscaling: true
  headGroupSpec:
    rayStartParams: { num-cpus: "0" }
    template: { spec: { containers: [{ name: head, image: "registry.example/raycap:{tag}" }] } }
  workerGroupSpecs:
    - groupName: gpus
      template:
        spec:
          volumes: [{ name: shm, emptyDir: { medium: Memory, sizeLimit: 1.5Gi } }]
          containers:
            - name: worker
              image: "registry.example/raycap:{tag}"
              env: [{ name: A, value: "1" }, { name: POD, valueFrom: { fieldRef: { fieldPath: metadata.name } } }]
              volumeMounts: [{ name: shm, mountPath: /dev/shm }]
              resources:
                limits: { cpu: 500m, memory: 1.5Gi, nvidia.com/mig-1g.5gb: 1 }
                requests: { cpu: 250m, memory: 1Gi }
"""
SOUND_MANIFESTS: dict[str, tuple[tuple[str, str], ...]] = {
    "the template": (),
    "fractions of CPUs and memory": ((LIMITED, LIMITED.replace("cpu: 7", "cpu: 6500m").replace("24Gi", "23.5Gi")),),
    "quantities in quotes": ((LIMITED, LIMITED.replace("cpu: 7", 'cpu: "7"').replace("gpu: 1", 'gpu: "1"')),),
    "bytes and exponents": (
        (LIMITED, LIMITED.replace("24Gi", "24000000000")), (HEAD_LIMITS, "limits: { cpu: 4, memory: 16e9 }"), (
        "requests: { cpu: 4, memory: 16Gi }", "requests: { cpu: 4, memory: 16G }")),
    "requests below limits": ((REQUESTS, REQUESTS.replace("7", "6500m").replace("24Gi", "23Gi")),),
    "GPUs of other makers": ((LIMITED, LIMITED.replace("nvidia", "amd")),),
    "other devices": ((LIMITED, LIMITED.replace("nvidia.com/gpu", "aws.amazon.com/neuroncore")),),
    "devices of a domain of one's own": ((LIMITED, LIMITED.replace("nvidia.com/gpu", "example.com/gpu")),),
    "shared GPUs": ((LIMITED, LIMITED.replace("com/gpu", "com/gpu.shared")),),
    "a head without resources": (
        ("              resources:\n                limits: { cpu: 4, memory: 16Gi }\n                "
                                  "requests: { cpu: 4, memory: 16Gi }\n", ""),),
    "version v2 of the autoscaler": (("upscalingMode: Default,", "version: v2,"),
                                     (ACCOUNT, f"{ACCOUNT}            restartPolicy: Never\n"),
                                     ("replicas: 0\n        min", "idleTimeoutSeconds: 60\n        min")),
    "resources of the group": (("rayStartParams: {}", 'resources: { CPU: "7", GPU: "1" }'),),
    "a generated name": (("  name: raycap\nspec", "  generateName: raycap-\nspec"),),
    "an anchor of a whole pod": ((LIMITED, "<<: *resources"), (
        "resources:\n                limits: { cpu: 4", "resources: &resources\n                limits: { cpu: 4")),
    "another document": (
        ("\n---\n", "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: { name: settings }\ndata: { a: b }\n---\n"),),
    "capitals in the name of a group": (("groupName: gpu-spot", "groupName: GPU-spot"),),
    "the newest fields": (
        ("  shutdownAfterJobFinishes: true",
         "  backoffLimit: 2\n  submissionMode: HTTPMode\n  shutdownAfterJobFinishes: true"),),
    "a toleration of everything": (
        ("{ key: nvidia.com/gpu, operator: Exists, effect: NoSchedule }", "{ operator: Exists }"),),
}  # fmt: skip


@pytest.mark.parametrize("case", SOUND_MANIFESTS)
def test_a_manifest_that_kubernetes_accepts_has_no_fault(case: str, file: Path) -> None:
    text = decided(render_template(Template.KUBERAY, HERE))
    for old, new in SOUND_MANIFESTS[case]:
        assert old in text
        text = text.replace(old, new, 1)
    file.write_text(text)
    assert list(map(str, check_cluster_file(str(file)).faults)) == []


def test_a_cluster_without_job_has_no_fault(file: Path) -> None:
    file.write_text(CLUSTER_ALONE.replace("{ray}", HERE.ray).replace("{tag}", HERE.tag))
    assert list(map(str, check_cluster_file(str(file)).faults)) == []


SOUND_FILES: dict[str, tuple[Template, tuple[tuple[str, str], ...]]] = {
    "a zone": (Template.AWS, (("region: us-east-1", "region: us-east-1\n  availability_zone: us-east-1a"),)),
    "zones with spaces": (Template.AWS, (
        ("region: us-east-1", "region: us-east-1\n  availability_zone: us-east-1a, us-east-1b"),)),
    "a local zone": (Template.AWS, (("region: us-east-1", "region: us-west-2\n  availability_zone: us-west-2-lax-1a"),)),
    "a region in China": (Template.AWS, (("region: us-east-1", "region: cn-north-1"),)),
    "an image by parameter": (Template.AWS, (("ami-0123456789abcdef0", "resolve:ssm:/images/raycap"),)),
    "several GPUs": (Template.AWS, (("g5.2xlarge", "p5.48xlarge"), ("{ CPU: 8, GPU: 1 }", "{ CPU: 192, GPU: 8 }"))),
    "a faster volume": (Template.AWS, (("VolumeType: gp3", "VolumeType: gp3, Iops: 6000, Throughput: 500"),)),
    "a provisioned volume": (Template.AWS, (("VolumeType: gp3", "VolumeType: io2, Iops: 6000"),)),
    "a price": (Template.AWS, (("MarketType: spot", 'MarketType: spot, SpotOptions: { MaxPrice: "0.50" }'),)),
    "a network": (Template.AWS, (
        ("      InstanceType: g5", "      SubnetIds: [subnet-0123abcd]\n      SecurityGroupIds: [sg-0123abcd]\n"
                                  "      InstanceType: g5"),)),
    "machines that always run": (Template.AWS, (("min_workers: 0", "min_workers: 8"),)),
    "custom resources": (Template.AWS, (("GPU: 1 }", "GPU: 1, a10g: 1 }"),)),
    "merged settings": (Template.AWS, (("    resources: { CPU: 8, GPU: 1 }", "    resources: { <<: { GPU: 1 }, CPU: 8 }"),)),
    "an image of a registry with a port": (Template.AWS, (
        (f"rayproject/ray:{HERE.tag}-gpu", f"registry.example:5000/ray:{HERE.tag}"),)),
    "a list of settings, as in Ray's examples": (Template.GCP, (
        (SCHEDULING, "[{ preemptible: true }, { onHostMaintenance: TERMINATE }]"),)),
    "a disk type": (Template.GCP, (
        ("diskSizeGb: 200", "diskSizeGb: 200\n            diskType: zones/us-central1-a/diskTypes/pd-ssd"),)),
    "a size in quotes": (Template.GCP, (("diskSizeGb: 200", 'diskSizeGb: "200"'),)),
    "a project of a domain": (Template.GCP, (("physics-12", "example.com:physics-12"),)),
    "attached GPUs": (Template.GCP, (
        ("machineType: g2-standard-8", "machineType: n1-standard-8\n      guestAccelerators:\n        - "
         "{ acceleratorCount: 1, acceleratorType: zones/us-central1-a/acceleratorTypes/l4 }"),)),
    "a machine without spot": (Template.GCP, ((SCHEDULING, "{ onHostMaintenance: TERMINATE }"), ("gpu_spot", "gpu"))),
}  # fmt: skip


@pytest.mark.parametrize("case", SOUND_FILES)
def test_a_file_that_the_cloud_accepts_has_no_fault(case: str, file: Path) -> None:
    template, changes = SOUND_FILES[case]
    text = decided(render_template(template, HERE))
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)
    assert list(map(str, check_cluster_file(str(file)).faults)) == []


def test_settings_that_contradict_each_other_are_faults(file: Path) -> None:
    text = decided(render_template(Template.AWS, HERE)).replace("max_workers: 8\nup", "max_workers: 3\nup")
    file.write_text(text.replace("min_workers: 0", "min_workers: 5"))
    faults = [fault for fault in check_cluster_file(str(file)).faults if fault.field == "max_workers"]
    assert any("5" in fault.rule and "3" in fault.rule for fault in faults)
    text = decided(render_template(Template.KUBERAY, HERE)).replace("upscalingMode: Default,", "version: v2,")
    text = text.replace("groupName: gpu-spot", "groupName: cpus", 1)
    group = text[text.index("      - groupName: cpus") : text.index("---\n# An MLflow server")]
    file.write_text(
        text.replace(group, group + group).replace(ACCOUNT, f"{ACCOUNT}            restartPolicy: Always\n", 1)
    )
    fields = {
        fault.field.rpartition("]")[2] or fault.field: fault.rule for fault in check_cluster_file(str(file)).faults
    }
    assert "unique" in fields[".groupName"]
    assert "v2" in fields[".template.spec.restartPolicy"]


def test_a_pod_without_containers_is_a_fault(file: Path) -> None:
    text = CLUSTER_ALONE.replace("{ray}", HERE.ray).replace("{tag}", HERE.tag)
    file.write_text(text[: text.index("          containers:\n")] + "          containers: []\n")
    assert any("at least one container" in fault.rule for fault in check_cluster_file(str(file)).faults)

"""Cluster files that Kubernetes, KubeRay, EC2 or Google Cloud would refuse are faults; those that they accept are not."""

from pathlib import Path

import pytest

from raycap.cluster.cloud.check import check
from raycap.cluster.cloud.templates import Template, render
from raycap.cluster.cloud.versions import Versions
from tests.support.decided import decided

HERE = Versions.here()
LIMITS = "limits: { cpu: 7, memory: 24Gi, nvidia.com/gpu: 1 }"
REQUESTS = "requests: { cpu: 7, memory: 24Gi, nvidia.com/gpu: 1 }"
LIMITED = f"{LIMITS}\n                  {REQUESTS}"
HEAD_LIMITS = "limits: { cpu: 4, memory: 16Gi }"
NAME = "  name: raycap\nspec:"
WORKER = "- name: ray-worker\n"
BELOW_WORKER = f"{WORKER}                "
ACCOUNT = "            serviceAccountName: *account\n"
SELECTOR = "{ eks.amazonaws.com/capacityType: SPOT }"

# Case: the text to replace, its replacement, the end of the field, and texts that the rule must have.
Cases = dict[str, tuple[str, str, str, tuple[str, ...]]]
KUBERAY: Cases = {
    "a fraction without quotes": (HEAD_LIMITS, HEAD_LIMITS.replace("4", "4.5"), "limits.cpu", ("4.5", '"4.5"')),
    "a unit in bytes": (HEAD_LIMITS, HEAD_LIMITS.replace("16Gi", "16GB"), "limits.memory", ("16GB", "write 16G")),
    "a unit in lower case": (LIMITS, LIMITS.replace("24Gi", "24gi"), "limits.memory", ("24gi", "24Gi")),
    "a space in a quantity": (LIMITS, LIMITS.replace("24Gi", "24 Gi"), "limits.memory", ("24 Gi", "24Gi")),
    "memory without unit": (LIMITS, LIMITS.replace("24Gi", "24"), "limits.memory", ("24 bytes", "24Gi")),
    "a text as quantity": (LIMITS, LIMITS.replace("cpu: 7", "cpu: many"), "limits.cpu", ("many", "500m")),
    "negative CPUs": (LIMITS, LIMITS.replace("cpu: 7", "cpu: -7"), "limits.cpu", ("-7",)),
    "more CPUs requested than allowed": (REQUESTS, REQUESTS.replace("7", "7100m"), "requests.cpu", ("limit 7", "7100m")),
    "more memory requested than allowed": (REQUESTS, REQUESTS.replace("24Gi", "26G"), "requests.memory", ("24Gi", "26G")),
    "other GPUs requested than allowed": (
        REQUESTS, REQUESTS.replace("gpu: 1", "gpu: 2"), "nvidia.com/gpu", ("limit 1", "got 2")),
    "GPUs without limit": (LIMITS, "limits: { cpu: 7, memory: 24Gi }", "requests.nvidia.com/gpu", ("limit",)),
    "half a GPU": (LIMITED, LIMITED.replace("gpu: 1", "gpu: 500m"), "nvidia.com/gpu", ("whole", "500m")),
    "GPUs in another case": (LIMITED, LIMITED.replace("com/gpu", "com/GPU"), "nvidia.com/GPU", ("nvidia.com/gpu",)),
    "GPUs in the plural": (LIMITED, LIMITED.replace("com/gpu", "com/gpus"), "nvidia.com/gpus", ("nvidia.com/gpu",)),
    "GPUs of a misspelt domain": (LIMITED, LIMITED.replace("nvidia.com", "nvidea.com"), "nvidea.com/gpu", ("nvidia.com",)),
    "GPUs of half a domain": (LIMITED, LIMITED.replace("nvidia.com", "nvidia"), "nvidia/gpu", ("nvidia.com/gpu",)),
    "GPUs without domain": (LIMITED, LIMITED.replace("nvidia.com/gpu", "gpu"), "limits.gpu", ("nvidia.com/gpu",)),
    "memory in another case": (LIMITS, LIMITS.replace("memory", "Memory"), "limits.Memory", ("memory",)),
    "CPUs in another case": (HEAD_LIMITS, HEAD_LIMITS.replace("cpu", "CPU"), "limits.CPU", ("cpu",)),
    "no CPUs": (LIMITED, "limits: { memory: 24Gi, nvidia.com/gpu: 1 }", "limits.cpu", ("autoscaler",)),
    "a name in upper case": (NAME, NAME.replace("raycap", "RayCap"), "metadata.name", ("RayCap", "raycap")),
    "a name with an underscore": (NAME, NAME.replace("raycap", "ray_cap"), "metadata.name", ("ray_cap", "ray-cap")),
    "a name that begins with a digit": (NAME, NAME.replace("raycap", "2cap"), "metadata.name", ("2cap", "letter first")),
    "a name that is a number": (NAME, NAME.replace("raycap", "42"), "metadata.name", ("42", "quotes")),
    "a name that is too long": (NAME, NAME.replace("raycap", 48 * "r"), "metadata.name", ("47",)),
    "no name": (NAME, NAME.replace("name: raycap", "labels: {}"), "metadata.name", ("missing",)),
    "metadata that are a list": (f"metadata:\n{NAME}", "metadata: [raycap]\nspec:", "metadata", ("object",)),
    "a namespace with capitals": (NAME, NAME.replace("\nspec", "\n  namespace: Ray\nspec"), "metadata.namespace", ("Ray",)),
    "a label with spaces": (NAME, NAME.replace("\nspec", "\n  labels: {a: b c}\nspec"), "labels.a", ("b c", "b-c")),
    "a label that is a number": (NAME, NAME.replace("\nspec", "\n  labels: {a: 1}\nspec"), "labels.a", ('"1"',)),
    "a key of a label with spaces": (NAME, NAME.replace("\nspec", "\n  labels: {a b: c}\nspec"), "labels.a b", ("key",)),
    "fewest over most": ("minReplicas: 0", "minReplicas: 9", "minReplicas", ("maxReplicas 8", "got 9")),
    "negative replicas": ("replicas: 0\n", "replicas: -1\n", "].replicas", ("-1",)),
    "negative fewest": ("minReplicas: 0", "minReplicas: -2", "minReplicas", ("-2",)),
    "negative most": ("maxReplicas: 8", "maxReplicas: -8", "maxReplicas", ("-8",)),
    "replicas in quotes": ("maxReplicas: 8", 'maxReplicas: "8"', "maxReplicas", ("integer", "without quotes")),
    "a fraction of replicas": ("maxReplicas: 8", "maxReplicas: 8.5", "maxReplicas", ("integer", "8.5")),
    "replicas beyond 32 bits": ("maxReplicas: 8", "maxReplicas: 99999999999", "maxReplicas", ("99999999999",)),
    "more replicas than most": ("replicas: 0\n", "replicas: 20\n", "].replicas", ("maxReplicas 8", "20")),
    "an empty number of replicas": ("maxReplicas: 8", "maxReplicas:", "maxReplicas", ("integer", "null")),
    "a parameter of ray start without quotes": ('{ num-cpus: "0"', "{ num-cpus: 0", "num-cpus", ("string", '"0"')),
    "a parameter of ray start that is no number": (
        "rayStartParams: {}", 'rayStartParams: {num-gpus: "one"}', "num-gpus", ("one",)),
    "a truth value in quotes": ("enableInTreeAutoscaling: true", 'enableInTreeAutoscaling: "true"',
                                "enableInTreeAutoscaling", ("boolean", "without quotes")),
    "a choice in lower case": ("Mode: Default", "Mode: default", "upscalingMode", ("'Default'",)),
    "a time with a unit": ("idleTimeoutSeconds: 600", "idleTimeoutSeconds: 10m", "idleTimeoutSeconds", ("integer", "10m")),
    "an unknown field of a job": (f"{NAME}\n", f"{NAME}\n  restartPolicy: Never\n", "spec.restartPolicy", ("unknown",)),
    "an unknown field of a pod": (ACCOUNT, f"{ACCOUNT}            serviceacount: x\n", "serviceacount", ("serviceAccount",)),
    "an unknown field of a container": (
        WORKER, f"{BELOW_WORKER}imagePullpolicy: Always\n", "imagePullpolicy", ("imagePullPolicy",)),
    "an unknown field of the document": ("spec:\n  # FILL", "specs: {}\nspec:\n  # FILL", "specs", ("unknown",)),
    "a name of a container with capitals": (WORKER, "- name: Ray_Worker\n", "containers[0].name", ("ray-worker",)),
    "a port that does not exist": ("containerPort: 6379", "containerPort: 637900", "containerPort", ("65535",)),
    "a name of a port that is too long": ("name: gcs-server", "name: gcs-server-of-ray", "ports[0].name", ("15",)),
    "two ports of one name": ("name: dashboard }", "name: client }", "name", ("unique", "client")),
    "a protocol in lower case": ("6379, name", "6379, protocol: tcp, name", "protocol", ("TCP", "tcp")),
    "a toleration of an unknown effect": ("effect: NoSchedule", "effect: noschedule", "effect", ("'NoSchedule'",)),
    "a toleration of an unknown operator": ("operator: Exists", "operator: exists", "operator", ("'Exists'",)),
    "a toleration with a value too many": ("operator: Exists", "operator: Exists, value: x", "value", ("Exists",)),
    "a truth value in a selector": (SELECTOR, "{ spot: true }", "nodeSelector.spot", ("string", '"true"')),
    "a space in a selector": (SELECTOR, "{ a.com/spot: on demand }", "nodeSelector.a.com/spot", ("on demand",)),
    "a name of a group with an underscore": ("groupName: gpu-spot", "groupName: gpu_spot", "groupName", ("gpu-spot",)),
    "no name of a group": ("groupName: gpu-spot\n        ", "", "groupName", ("missing",)),
    "an unknown version of the API": ("apiVersion: ray.io/v1", "apiVersion: ray.io/v2", "apiVersion", ("ray.io/v1",)),
    "a kind in another case": ("kind: RayJob", "kind: Rayjob", "kind", ("'RayJob'",)),
    "a negative time to live": ("Finished: 600", "Finished: -1", "ttlSecondsAfterFinished", ("-1",)),
    "a time to live without end": ("  shutdownAfterJobFinishes: true\n", "", "ttlSecondsAfterFinished", ("shutdownAfter",)),
    "an unknown mode": (f"{NAME}\n", f"{NAME}\n  submissionMode: httpmode\n", "submissionMode", ("HTTPMode",)),
    "an account with capitals": ("&account raycap", "&account RayCap", "serviceAccountName", ("raycap",)),
    "a number in the environment": (WORKER, f"{BELOW_WORKER}env: [{{name: A, value: 1}}]\n", "env[0].value", ('"1"',)),
    "a mount without a volume": (WORKER, f"{BELOW_WORKER}volumeMounts: [{{name: shm, mountPath: /x}}]\n",
                                 "volumeMounts[0].name", ("shm", "volume")),
    "a volume without a source": (ACCOUNT, f"{ACCOUNT}            volumes: [{{name: shm}}]\n", "volumes[0]", ("emptyDir",)),
    "an image that is a number": ("image: *image", "image: 5", "image", ("string",)),
    "a policy in lower case": (ACCOUNT, f"{ACCOUNT}            restartPolicy: never\n", "restartPolicy", ("Never",)),
    "an idle time of version v2": ("replicas: 0\n", "idleTimeoutSeconds: 60\n        replicas: 0\n",
                                   "].idleTimeoutSeconds", ("version: v2",)),
    "resources stated twice": ("rayStartParams: {}", 'rayStartParams: {num-gpus: "1"}\n        resources: {GPU: "1"}',
                               "].resources", ("rayStartParams.num-gpus",)),
    "a name of the server with capitals": (
        "  name: mlflow\nspec:\n  selector: { m", "  name: MLflow\nspec:\n  selector: { m",
                                           "metadata.name", ("mlflow",)),
    "a pod of the server with an unknown field": ("workingDir: /home", "workDir: /home", "workDir", ("'workingDir'",)),
}  # fmt: skip

GPU_NODE = "InstanceType: g5.2xlarge"
DISK = "{ VolumeSize: 200, VolumeType: gp3 }"
AWS: Cases = {
    "another case of a machine type": (GPU_NODE, "InstanceType: G5.2xlarge", "InstanceType", ("'g5.2xlarge'",)),
    "a misspelt machine type": (GPU_NODE, "InstanceType: g5.2xlrage", "InstanceType", ("'g5.2xlarge'",)),
    "a machine type of another cloud": (GPU_NODE, "InstanceType: g2-standard-8", "InstanceType", ("EC2",)),
    "a machine type that is a number": (GPU_NODE, "InstanceType: 5", "InstanceType", ("str", '"5"')),
    "a misspelt region": ("region: us-east-1", "region: us-esat-1", "provider.region", ("us-esat-1",)),
    "a zone as region": ("region: us-east-1", "region: us-east-1a", "provider.region", ("us-east-1",)),
    "a region of another cloud": ("region: us-east-1", "region: us-central1", "provider.region", ("us-central1",)),
    "no region": ("  region: us-east-1\n", "", "provider.region", ("missing",)),
    "a misspelt field of the provider": ("  region:", "  regoin:", "provider.regoin", ("'region'",)),
    "a zone of another region": ("region: us-east-1", "region: us-east-1\n  availability_zone: us-west-2a",
                                 "availability_zone", ("us-east-1", "us-west-2a")),
    "one zone of another region": ("region: us-east-1", "region: us-east-1\n  availability_zone: us-east-1a, us-east-2a",
                                   "availability_zone", ("us-east-2a",)),
    "a region as zone": ("region: us-east-1", "region: us-east-1\n  availability_zone: us-east-1",
                         "availability_zone", ("us-east-1a",)),
    "a zone of a longer region": ("region: us-east-1", "region: us-east-1\n  availability_zone: us-east-11a",
                                  "availability_zone", ("us-east-11a",)),
    "an unknown provider": ("type: aws", "type: amazon", "provider.type", ("aws", "amazon")),
    "an identifier of another kind": ("ami-0123456789abcdef0", "subnet-0123456789abcdef0", "ImageId", ("ami-",)),
    "an identifier that is cut": ("ami-0123456789abcdef0", "ami-0123456789abcde", "ImageId", ("17",)),
    "an identifier in upper case": ("ami-0123456789abcdef0", "ami-0123456789ABCDEF0", "ImageId", ("ami-",)),
    "a type of volume that does not exist": (DISK, DISK.replace("gp3", "gp9"), "VolumeType", ("gp3", "gp9")),
    "a volume of no size": (DISK, DISK.replace("200", "0"), "VolumeSize", ("got 0",)),
    "a volume that is too large": (DISK, DISK.replace("200", "200000"), "VolumeSize", ("200000",)),
    "a size with a unit": (DISK, DISK.replace("200", "200GB"), "VolumeSize", ("int", "200GB")),
    "operations of a volume that has none": (DISK, DISK.replace("gp3", "gp2, Iops: 3000"), "Iops", ("gp2",)),
    "a volume without its operations": (DISK, DISK.replace("gp3", "io2"), "Iops", ("io2",)),
    "a throughput of a volume that has none": (DISK, DISK.replace("gp3", "gp2, Throughput: 200"), "Throughput", ("gp3",)),
    "a device name in another case": ("DeviceName:", "Devicename:", "Devicename", ("'DeviceName'",)),
    "a profile by name and address": ("{ Name: raycap }", "{ Name: raycap, Arn: x }", "IamInstanceProfile", ("Name", "Arn")),
    "a profile that is a text": ("{ Name: raycap }", "raycap", "IamInstanceProfile", ("dict",)),
    "another case of a market": ("MarketType: spot", "MarketType: Spot", "MarketType", ("'spot'",)),
    "no market": ("{ MarketType: spot }", "{}", "MarketType", ("missing",)),
    "a price that is a number": (
        "MarketType: spot", "MarketType: spot, SpotOptions: { MaxPrice: 0.5 }", "MaxPrice", ("0.5",)),
    "a price with a currency": ("MarketType: spot", "MarketType: spot, SpotOptions: { MaxPrice: $1 }", "MaxPrice", ("$1",)),
    "an unknown interruption": ("MarketType: spot", "MarketType: spot, SpotOptions: { InstanceInterruptionBehavior: kill }",
                                "InstanceInterruptionBehavior", ("terminate", "kill")),
    "fewest over most": ("min_workers: 0", "min_workers: 9", "min_workers", ("max_workers 8", "9")),
    "negative fewest": ("min_workers: 0", "min_workers: -1", "min_workers", ("-1",)),
    "negative most": ("min_workers: 0\n    max_workers: 8", "max_workers: -8", "max_workers", ("-8",)),
    "negative most of all": ("max_workers: 8\nup", "max_workers: -3\nup", "max_workers", ("-3",)),
    "a number in quotes": ("min_workers: 0", 'min_workers: "0"', "min_workers", ("integer", "without quotes")),
    "an unknown group as head": ("head_node_type: head", "head_node_type: hed", "head_node_type", ("head", "hed")),
    "resources in lower case": ("GPU: 1 }", "gpu: 1 }", "resources.gpu", ("GPU",)),
    "resources in the plural": ("GPU: 1 }", "GPUs: 1 }", "resources.GPUs", ("GPU",)),
    "a fraction of a resource": ("GPU: 1 }", "GPU: 0.5 }", "resources.GPU", ("integer", "0.5")),
    "a negative resource": ("GPU: 1 }", "GPU: -1 }", "resources.GPU", ("-1",)),
    "a misspelt field of a group": ("min_workers: 0", "minworkers: 0", "minworkers", ("'min_workers'",)),
    "a misspelt field of docker": ("container_name:", "containername:", "docker.containername", ("'container_name'",)),
    "an image in upper case": ("rayproject/ray:", "rayproject/Ray:", "docker.image", ("lower",)),
    "an image with a space": ("rayproject/ray:", "rayproject/ray :", "docker.image", ("rayproject/ray :",)),
    "a name of a container with a space": (
        "container_name: raycap", "container_name: ray cap", "container_name", ("ray cap",)),
    "commands that are one text": (
        'setup_commands:\n  - pip install --quiet "$HOME/raycap[aws]"', "setup_commands: pip install x",
                                   "setup_commands", ("array",)),
    "an unknown value of a tag": ("cluster_name: raycap", "cluster_name: 5", "cluster_name", ("string", '"5"')),
}  # fmt: skip

GPU_TYPE = "machineType: g2-standard-8"
SCHEDULING = "{ provisioningModel: SPOT, instanceTerminationAction: DELETE, onHostMaintenance: TERMINATE }"
PROJECT = "project_id: physics-12"
GCP: Cases = {
    "a zone of another region": (
        "zone: us-central1-a", "zone: us-east1-b", "availability_zone", ("us-central1", "us-east1-b")),
    "a region as zone": ("zone: us-central1-a", "zone: us-central1", "availability_zone", ("us-central1-a",)),
    "a zone of a longer region": ("zone: us-central1-a", "zone: us-central11-a", "availability_zone", ("us-central11-a",)),
    "two zones": ("zone: us-central1-a", "zone: us-central1-a,us-central1-b", "availability_zone", ("one zone",)),
    "a region of another cloud": ("region: us-central1", "region: us-east-1", "provider.region", ("us-east-1",)),
    "a region in upper case": ("region: us-central1", "region: US-central1", "provider.region", ("US-central1",)),
    "no zone": ("  availability_zone: us-central1-a\n", "", "availability_zone", ("missing",)),
    "no region": ("  region: us-central1\n", "", "provider.region", ("missing",)),
    "no project": (f"  {PROJECT}\n", "", "project_id", ("missing",)),
    "a name of a project": (PROJECT, "project_id: My Physics", "project_id", ("My Physics",)),
    "a project in upper case": (PROJECT, "project_id: Physics-12", "project_id", ("Physics-12",)),
    "a number of a project": (PROJECT, "project_id: 12345678", "project_id", ("string",)),
    "a cluster in upper case": ("cluster_name: raycap", "cluster_name: RayCap", "cluster_name", ("RayCap",)),
    "a cluster with an underscore": ("cluster_name: raycap", "cluster_name: ray_cap", "cluster_name", ("ray_cap",)),
    "a cluster with a long name": ("cluster_name: raycap", f"cluster_name: {60 * 'r'}", "cluster_name", ("35",)),
    "a group in upper case": ("gpu_spot:", "GPU_spot:", "GPU_spot", ("lower-case",)),
    "a machine type in upper case": (GPU_TYPE, "machineType: G2-standard-8", "machineType", ("G2-standard-8",)),
    "a machine type of another cloud": (GPU_TYPE, "machineType: g5.2xlarge", "machineType", ("g5.2xlarge",)),
    "no machine type": (f"      {GPU_TYPE}\n", "", "machineType", ("missing",)),
    "another number of GPUs": (GPU_TYPE, "machineType: g2-standard-24", "resources.GPU", ("2",)),
    "live migration of GPUs": (SCHEDULING, SCHEDULING.replace("TERMINATE", "MIGRATE"), "onHostMaintenance", ("TERMINATE",)),
    "restarts of a spot machine": (
        SCHEDULING, SCHEDULING.replace(" }", ", automaticRestart: true }"), "automaticRestart", ("false",)),
    "two boot disks": ("      disks:\n        - boot: true\n", "      disks:\n        - boot: true\n        - boot: true\n",
                       "node_config.disks", ("one disk",)),
    "no boot disk": ("boot: true", "boot: false", "node_config.disks", ("boot",)),
    "a disk type of another zone": (
        "diskSizeGb: 200", "diskSizeGb: 200\n            diskType: zones/us-east1-b/diskTypes/pd-ssd",
                                    "diskType", ("us-central1-a", "us-east1-b")),
    "fewest over most": ("min_workers: 0", "min_workers: 9", "min_workers", ("max_workers 8", "9")),
    "resources in lower case": ("GPU: 1 }", "gpu: 1 }", "resources.gpu", ("GPU",)),
    "a misspelt field of the provider": (
        "  availability_zone:", "  avalability_zone:", "avalability_zone", ("'availability_zone'",)),
}  # fmt: skip
BY_SCHEMA: Cases = {  # types and choices of Google's API
    "a misspelt field of a machine": (GPU_TYPE, "machinetype: g2-standard-8", "machinetype", ("'machineType'",)),
    "a kind of disk in lower case": ("type: PERSISTENT", "type: persistent", "type", ("PERSISTENT",)),
    "a size with a unit": ("diskSizeGb: 200", "diskSizeGb: 200GB", "diskSizeGb", ("200GB",)),
    "an unknown model": (SCHEDULING, SCHEDULING.replace("SPOT", "spot"), "provisioningModel", ("SPOT", "spot")),
    "an unknown end": (SCHEDULING, SCHEDULING.replace("DELETE", "KILL"), "instanceTerminationAction", ("DELETE", "KILL")),
    "a truth value in quotes": ("boot: true", 'boot: "true"', "boot", ("boolean",)),
    "scopes that are one text": (
        'scopes: ["https://www.googleapis.com/auth/cloud-platform"]', "scopes: all", "scopes", ("array",)),
    "metadata without items": (
        "{ items: [{ key: install-nvidia-driver, value: \"True\" }] }", "{ install-nvidia-driver: \"True\" }",
                               "install-nvidia-driver", ("unknown",)),
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cluster.yaml"


def check_is_found(template: Template, case: tuple[str, str, str, tuple[str, ...]], file: Path) -> None:
    old, new, field, values = case
    sound = render(template, HERE)
    sound = sound if old in sound else decided(sound)
    assert old in sound
    broken = decided(sound.replace(old, new))
    file.write_text(broken)
    found = check(str(file)).faults
    expected = [
        fault for fault in found if fault.field.endswith(field) and all(value in fault.rule for value in values)
    ]
    assert expected, list(map(str, found))
    assert all(";" in fault.rule or "did you mean" in fault.rule for fault in found), list(map(str, found))
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
    text = decided(render(Template.KUBERAY, HERE))
    for old, new in SOUND_MANIFESTS[case]:
        assert old in text
        text = text.replace(old, new, 1)
    file.write_text(text)
    assert list(map(str, check(str(file)).faults)) == []


def test_a_cluster_without_job_has_no_fault(file: Path) -> None:
    file.write_text(CLUSTER_ALONE.replace("{ray}", HERE.ray).replace("{tag}", HERE.tag))
    assert list(map(str, check(str(file)).faults)) == []


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
    text = decided(render(template, HERE))
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)
    assert list(map(str, check(str(file)).faults)) == []


def test_settings_that_contradict_each_other_are_faults(file: Path) -> None:
    text = decided(render(Template.AWS, HERE)).replace("max_workers: 8\nup", "max_workers: 3\nup")
    file.write_text(text.replace("min_workers: 0", "min_workers: 5"))
    faults = [fault for fault in check(str(file)).faults if fault.field == "max_workers"]
    assert any("5" in fault.rule and "3" in fault.rule for fault in faults)
    text = decided(render(Template.KUBERAY, HERE)).replace("upscalingMode: Default,", "version: v2,")
    text = text.replace("groupName: gpu-spot", "groupName: cpus", 1)
    group = text[text.index("      - groupName: cpus") : text.index("---\n# An MLflow server")]
    file.write_text(
        text.replace(group, group + group).replace(ACCOUNT, f"{ACCOUNT}            restartPolicy: Always\n", 1)
    )
    fields = {fault.field.rpartition("]")[2] or fault.field: fault.rule for fault in check(str(file)).faults}
    assert "unique" in fields[".groupName"]
    assert "v2" in fields[".template.spec.restartPolicy"]


def test_a_pod_without_containers_is_a_fault(file: Path) -> None:
    text = CLUSTER_ALONE.replace("{ray}", HERE.ray).replace("{tag}", HERE.tag)
    file.write_text(text[: text.index("          containers:\n")] + "          containers: []\n")
    assert any("at least one container" in fault.rule for fault in check(str(file)).faults)

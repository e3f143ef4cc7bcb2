"""Services of cluster files that others can reach without a token: none in the templates, each one in broken files."""

from pathlib import Path

import pytest

from raycap.cluster.cloud.check import check_cluster_file
from raycap.cluster.cloud.templates import Template, render_template
from raycap.cluster.cloud.versions import Versions
from tests.support.decided import decided

FILES = [template for template in Template if template is not Template.DOCKERFILE]


def exposed_fields(folder: Path, text: str) -> list[str]:
    (folder / "file").write_text(text)
    report = check_cluster_file(str(folder / "file"))
    assert report.faults == []
    return [fault.field for fault in report.open]


def template(name: Template) -> str:
    return decided(render_template(name, Versions.of_environment()))


@pytest.mark.parametrize("name", FILES)
def test_templates_expose_nothing(name: Template, tmp_path: Path) -> None:
    assert exposed_fields(tmp_path, template(name)) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "fields"),
    [
        (Template.AWS, "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled",
         ["head_start_ray_commands[1]", "worker_start_ray_commands[1]"]),
        (Template.ONPREM, "--host 127.0.0.1", "--host 0.0.0.0", ["head_start_ray_commands[2]"]),
        (Template.SLURM, "  export RAY_AUTH_MODE=token\n", "", ["ray start"]),
        (Template.KUBERAY, "    authOptions: { mode: token }", "    authOptions: { mode: disabled }",
         ["spec.rayClusterSpec.authOptions"]),
        (Template.KUBERAY, "  selector: { app: mlflow }\n", "  selector: { app: mlflow }\n  type: LoadBalancer\n",
         ["spec.type"]),
        (Template.KUBERAY, "kind: NetworkPolicy", "kind: ConfigMap", ["spec.template.spec.containers[0].args"]),
    ],
)  # fmt: skip
def test_what_others_can_reach_is_listed(name: Template, old: str, new: str, fields: list[str], tmp_path: Path) -> None:
    sound = template(name)
    assert old in sound
    assert exposed_fields(tmp_path, sound.replace(old, new)) == fields

"""Rendering of the files that start a cluster, with the versions of Ray and Python filled in."""

from enum import StrEnum
from importlib.resources import files

from raycap.cluster.cloud.versions import Versions


class Template(StrEnum):
    """Kinds of files: one for each way to get machines, and the Dockerfile of the image for Kubernetes."""

    AWS = "aws"
    GCP = "gcp"
    ONPREM = "onprem"
    SLURM = "slurm"
    KUBERAY = "kuberay"
    DOCKERFILE = "dockerfile"


FILES = {
    Template.AWS: "aws.yaml",
    Template.GCP: "gcp.yaml",
    Template.ONPREM: "onprem.yaml",
    Template.SLURM: "slurm.sh",
    Template.KUBERAY: "kuberay.yaml",
    Template.DOCKERFILE: "Dockerfile",
}


def render_template(template: Template, versions: Versions) -> str:
    """Return the text of a file. The KubeRay manifest ends with the Dockerfile of its image in comments."""
    text = (files("raycap.cluster.cloud") / "templates" / FILES[template]).read_text(encoding="utf-8")
    for name, value in {
        "ray": versions.ray,
        "python": versions.python.replace(".", ""),
        "dotted_python": versions.python,
    }.items():
        text = text.replace(f"{{{{{name}}}}}", value)
    if template is Template.KUBERAY:
        dockerfile = render_template(Template.DOCKERFILE, versions).splitlines()
        text += "\n".join(["---", "# The Dockerfile:", *(f"# {line}" for line in dockerfile), ""])
    return text

"""Rendering of the files that start a cluster, with the versions of Ray and Python filled in."""

from enum import StrEnum
from importlib.resources import files

from raycap.cluster.cloud.versions import Versions


class Template(StrEnum):
    """Kinds of files: one for each provider of machines, and the Dockerfile of the image for Kubernetes."""

    AWS = "aws"
    GCP = "gcp"
    KUBERAY = "kuberay"
    DOCKERFILE = "dockerfile"


FILES = {
    Template.AWS: "aws.yaml",
    Template.GCP: "gcp.yaml",
    Template.KUBERAY: "kuberay.yaml",
    Template.DOCKERFILE: "Dockerfile",
}


def render_template(template: Template, versions: Versions) -> str:
    """Return the text of a file. The KubeRay manifest ends with the Dockerfile of its image in comments."""
    text = (files("raycap.cluster.cloud") / "templates" / FILES[template]).read_text(encoding="utf-8")
    text = text.replace("{{ray}}", versions.ray).replace("{{python}}", versions.python.replace(".", ""))
    if template is Template.KUBERAY:
        dockerfile = render_template(Template.DOCKERFILE, versions).splitlines()
        text += "\n".join(["---", "# The Dockerfile:", *(f"# {line}" for line in dockerfile), ""])
    return text

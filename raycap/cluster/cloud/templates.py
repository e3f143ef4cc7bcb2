"""Files that start a cluster, with the Ray and the Python of this environment in them."""

from enum import StrEnum
from importlib.resources import files

from raycap.cluster.cloud.versions import Versions


class Template(StrEnum):
    """Where a cluster may run, and the image that Kubernetes needs."""

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


def render(template: Template, versions: Versions) -> str:
    """The text of a file. The manifest of KubeRay ends with the Dockerfile of its image, as comments."""
    text = (files("raycap.cluster.cloud") / "templates" / FILES[template]).read_text(encoding="utf-8")
    text = text.replace("{{ray}}", versions.ray).replace("{{python}}", versions.python.replace(".", ""))
    if template is Template.KUBERAY:
        dockerfile = render(Template.DOCKERFILE, versions).splitlines()
        text += "\n".join(["---", "# The Dockerfile:", *(f"# {line}" for line in dockerfile), ""])
    return text

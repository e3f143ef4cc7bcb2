"""Converts KubeRay's CRDs to the JSON Schema in raycap/cluster/cloud/schemas; run it when a new version is adopted.

python -m tests.support.kuberay_schema KUBERAY/helm-chart/kuberay-operator/crds VERSION
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

TARGET = Path(__file__).parents[2] / "raycap" / "cluster" / "cloud" / "schemas" / "kuberay.json"
KINDS = {"RayCluster": "ray.io_rayclusters.yaml", "RayJob": "ray.io_rayjobs.yaml"}
FORMATS = {
    "int32": {"minimum": -(2**31), "maximum": 2**31 - 1},
    "int64": {"minimum": -(2**63), "maximum": 2**63 - 1},
}
QUANTITY = "x-kubernetes-int-or-string"
KEPT = {"type", "required", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "anyOf", QUANTITY}
MIN_SHARED_CHARS = 700
"""Parts of the schema that occur several times and are longer than this are stored once, under $defs."""


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Return an OpenAPI v3 schema as JSON Schema in which unknown fields are refused, as kubectl refuses them."""
    result = {key: value for key, value in schema.items() if key in KEPT}
    result |= FORMATS.get(schema.get("format", ""), {})
    # Kubernetes fills in defaults before it validates.
    required = [name for name in schema.get("required", ()) if "default" not in schema["properties"].get(name, {})]
    result["required"] = required
    if schema.get("nullable"):
        result["type"] = [schema["type"], "null"]
    if "items" in schema:
        result["items"] = strict(schema["items"])
    if "properties" in schema:
        result["properties"] = {name: strict(one) for name, one in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result["additionalProperties"] = False
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = strict(schema["additionalProperties"])
    return result


def with_shared_parts(schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the schemas under $defs, together with the parts that occur several times."""
    number: Counter[str] = Counter()

    def count(node: Any) -> None:
        text = json.dumps(node, sort_keys=True)
        if is_schema(node) and len(text) > MIN_SHARED_CHARS:
            number[text] += 1
            if number[text] > 1:  # its own parts are stored once as well
                return
        for one in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            count(one)

    count(list(schemas.values()))
    names = {text: f"part{index}" for index, text in enumerate(text for text in number if number[text] > 1)}

    def shorten(node: Any, *, is_definition: bool = False) -> Any:
        if isinstance(node, list):
            return [shorten(one) for one in node]
        if not isinstance(node, dict):
            return node
        name = names.get(json.dumps(node, sort_keys=True)) if is_schema(node) else None
        if name and not is_definition:
            return {"$ref": f"#/$defs/{name}"}
        return {key: shorten(one) for key, one in node.items()}

    definitions = {name: shorten(json.loads(text), is_definition=True) for text, name in names.items()}
    return {"$defs": definitions | {kind: shorten(schema) for kind, schema in schemas.items()}}


def is_schema(node: Any) -> bool:
    """Whether a part of a schema is a schema itself and not, for example, a mapping of properties."""
    return isinstance(node, dict) and (isinstance(node.get("type"), str | list) or isinstance(node.get("anyOf"), list))


def main(folder: str, version: str) -> None:
    """Write the schema file."""
    schemas = {}
    for kind, file in KINDS.items():
        crd = yaml.safe_load((Path(folder) / file).read_text())
        (schema,) = [one["schema"]["openAPIV3Schema"] for one in crd["spec"]["versions"] if one["name"] == "v1"]
        schemas[kind] = strict(schema["properties"]["spec"])
    source = f"https://github.com/ray-project/kuberay/tree/{version}/helm-chart/kuberay-operator/crds"
    header = {"$schema": "https://json-schema.org/draft/2020-12/schema", "source": source, "license": "Apache-2.0"}
    text = json.dumps(header | with_shared_parts(schemas), separators=(",", ":"))
    TARGET.write_text(text.replace('"part', '\n"part') + "\n")  # one line per part


if __name__ == "__main__":
    main(*sys.argv[1:])

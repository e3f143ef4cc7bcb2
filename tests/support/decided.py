"""Fills in the placeholders of the cluster file templates."""

import re

DECISIONS = {
    "ami-00000000000000000": "ami-0123456789abcdef0",
    "my-project": "physics-12",
    "my-bucket": "physics",
    "my-registry": "registry.example/physics",
    "my-shared-folder": "physics",
    "MACHINE-": "192.0.2.",
    "images/IMAGE": "images/common-ubuntu-2204",
}


def decided(text: str) -> str:
    """Return a template with every placeholder filled in."""
    text = re.sub(r" *# FILL.*", "", text)
    for placeholder, decision in DECISIONS.items():
        text = text.replace(placeholder, decision)
    return text

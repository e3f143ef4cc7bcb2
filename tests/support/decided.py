"""Templates of cluster files with every placeholder filled in."""

import re

DECISIONS = {
    "ami-00000000000000000": "ami-0123456789abcdef0",
    "my-project": "physics-12",
    "my-bucket": "physics",
    "my-registry": "registry.example/physics",
    "images/IMAGE": "images/common-ubuntu-2204",
}


def decided(text: str) -> str:
    """Replace the placeholders of a template and remove its FILL comments, as a user does before `ray up`."""
    text = re.sub(r" *# FILL.*", "", text)
    for placeholder, decision in DECISIONS.items():
        text = text.replace(placeholder, decision)
    return text

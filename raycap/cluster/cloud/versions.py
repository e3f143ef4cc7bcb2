"""Which Ray and which Python an image or a command brings, against those of this environment."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

IMAGE = re.compile(r"(?P<name>[^@]+?)(?::(?P<tag>[^:/@]+))?(?P<digest>@sha256:\w+)?")
IN_TAG = re.compile(r"(\d+\.\d+\.\d+)[.\w]*-py(\d)(\d+)")
RAY_PACKAGE = re.compile(r"(?<![\w/.$~-])ray(?:\[[\w,-]*\])?(?P<pin>\s*[=<>~!]=?[\w.,<>=!~ *]*)?(?![\w./\[-])")
PYTHON = re.compile(r"(?:python|--python[= ]|-p )(3\.\d+)")


@dataclass(frozen=True)
class Versions:
    """Of Ray in full, of Python as 3.11."""

    ray: str
    python: str

    @classmethod
    def here(cls) -> "Versions":
        """Those of this environment."""
        return cls(version("ray"), f"{sys.version_info.major}.{sys.version_info.minor}")

    @property
    def tag(self) -> str:
        """As tags of images have it: 2.60.0-py311."""
        return f"{self.ray}-py{self.python.replace('.', '')}"

    def wrong_image(self, image: str) -> str | None:
        """What is wrong with an image; None if it is pinned, and to these versions as far as its tag tells."""
        found = IMAGE.fullmatch(image)
        if found and found["digest"]:
            return None
        name, tag = (found["name"], found["tag"] or "") if found else (image, "")
        match = IN_TAG.search(tag)
        if not tag or "latest" in tag or "nightly" in tag or (name.startswith("rayproject/") and not match):
            return f"must be pinned to a Ray and a Python, got {image}; take a tag such as {name}:{self.tag}"
        if match and (match[1], f"{match[2]}.{match[3]}") != (self.ray, self.python):
            return (
                f"must bring this environment's Ray {self.ray} and Python {self.python}, got {image}; "
                f"take {name}:{self.tag}{tag[match.end() :]}"
            )
        return None

    def wrong_command(self, command: str) -> Iterator[str]:
        """What is wrong with a command that sets a machine up."""
        installed = command.partition("install")[2]
        exactly = f"write 'ray[default,train,tune]=={self.ray}'"
        if "ray-wheels" in installed or "nightly" in installed:
            yield f"must not install a nightly Ray, got {command}; {exactly}"
        for found in RAY_PACKAGE.finditer(installed):
            pin = (found["pin"] or "").strip()
            if pin.rstrip("'\" ") != f"=={self.ray}":
                yield f"must install this environment's Ray {self.ray}, got {found[0].strip()}; {exactly}"
        for found in PYTHON.finditer(command):
            if found[1] != self.python:
                yield f"must take this environment's Python {self.python}, got {found[0]}; write {self.python}"

    def pinned_by(self, commands: list[str]) -> tuple[bool, bool]:
        """Whether commands that set a machine up pin Ray, and Python."""
        text = "\n".join(commands)
        return f"=={self.ray}" in text, bool(PYTHON.search(text))

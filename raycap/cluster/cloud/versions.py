"""Comparison of the versions of Ray and Python in images and install commands with those of this environment."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

IMAGE = re.compile(r"(?P<name>[^@]+?)(?::(?P<tag>[^:/@]+))?(?P<digest>@sha256:\w+)?")
"""Name, tag and digest of an image. A registry may have a port, so the tag is the text after the last colon, if it contains
no slash."""
REFERENCE = re.compile(
    r"([\w.-]+(:\d+)?/)?[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*(:\w[\w.-]{0,127})?(@sha256:\w+)?"
)
"""Names of images that Docker accepts: the name is lower-case; the registry before it may have capital letters."""
IN_TAG = re.compile(r"(\d+\.\d+\.\d+)[.\w]*-py(\d)(\d+)")
"""Versions of Ray and Python in a tag: 2.60.0-py311-gpu, 2.60.0.abc123-py311."""
RAY_PACKAGE = re.compile(r"(?<![\w/.$~-])ray(?:\[[\w,-]*\])?(?P<pin>\s*[=<>~!]=?[\w.,<>=!~ *]*)?(?![\w./\[-])")
"""The requirement `ray` with its extras and pins in a command, but not ray-wheels, $HOME/ray, or raycap."""
PYTHON = re.compile(r"(?:python|--python[= ]|-p )(3\.\d+)")


@dataclass(frozen=True)
class Versions:
    """The full version of Ray, and the major and minor version of Python, such as 3.11."""

    ray: str
    python: str

    @classmethod
    def of_environment(cls) -> "Versions":
        """Return the versions of this environment."""
        return cls(version("ray"), f"{sys.version_info.major}.{sys.version_info.minor}")

    @property
    def tag(self) -> str:
        """The versions in the form used by image tags: 2.60.0-py311."""
        return f"{self.ray}-py{self.python.replace('.', '')}"

    def wrong_image(self, image: str) -> str | None:
        """Return the rule that an image violates, or None if it is pinned and its tag names no other versions.

        An image with a digest is pinned, but its versions are unknown.
        """
        if not REFERENCE.fullmatch(image):
            rule = f"must have the form REGISTRY/NAME:TAG, with a lower-case name and no spaces, got {image}"
            return f"{rule}; write, for example, rayproject/ray:{self.tag}-gpu"
        found = IMAGE.fullmatch(image)
        if found and found["digest"]:
            return None
        name, tag = (found["name"], found["tag"] or "") if found else (image, "")
        match = IN_TAG.search(tag)
        if not tag or "latest" in tag or "nightly" in tag or (name.startswith("rayproject/") and not match):
            return f"must be pinned to a version of Ray and Python, got {image}; use a tag such as {name}:{self.tag}"
        if match and (match[1], f"{match[2]}.{match[3]}") != (self.ray, self.python):
            return (
                f"must contain this environment's Ray {self.ray} and Python {self.python}, got {image}; "
                f"use {name}:{self.tag}{tag[match.end() :]}"
            )
        return None

    def wrong_command(self, command: str) -> Iterator[str]:
        """Yield the rules that a setup command violates."""
        installed = command.partition("install")[2]
        exact = f"write 'ray[default,train,tune]=={self.ray}'"
        if "ray-wheels" in installed or "nightly" in installed:
            yield f"must not install a nightly Ray, got {command}; {exact}"
        for found in RAY_PACKAGE.finditer(installed):
            pin = (found["pin"] or "").strip()
            if pin.rstrip("'\" ") != f"=={self.ray}":
                yield f"must install this environment's Ray {self.ray}, got {found[0].strip()}; {exact}"
        for found in PYTHON.finditer(command):
            if found[1] != self.python:
                yield f"must use this environment's Python {self.python}, got {found[0]}; write {self.python}"

    def pinned_by(self, commands: list[str]) -> tuple[bool, bool]:
        """Return whether setup commands pin Ray to this version, and whether they pin Python."""
        text = "\n".join(commands)
        return f"=={self.ray}" in text, bool(PYTHON.search(text))

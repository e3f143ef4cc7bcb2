"""Batch scripts for Slurm: their nodes, and faults of their directives and commands."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

from raycap.cluster.cloud.document import ClusterDocument, Fault
from raycap.cluster.cloud.groups import Cluster, NodeGroup
from raycap.spec.document import did_you_mean
from raycap.spec.yaml_reader import KeyPath

RUN_PATH: KeyPath = ("raycap run",)
"""Path of the command that runs the sweep."""
COMMANDS = ("source", "srun", "ray start", "raycap cluster wait", "raycap run")
"""Commands that the document contains besides the directives, with their lines as values."""
DIRECTIVE = re.compile(r"#SBATCH\s+(.*)")
SHORT = {
    "N": "nodes",
    "n": "ntasks",
    "c": "cpus-per-task",
    "t": "time",
    "p": "partition",
    "J": "job-name",
    "o": "output",
}
OPTIONS = (*SHORT.values(), "ntasks-per-node", "gres", "gpus-per-node", "mem", "requeue", "no-requeue", "open-mode",
           "signal", "account", "qos", "constraint", "exclusive", "error", "mail-type", "mail-user", "exclude")  # fmt: skip
"""Common options of sbatch. Others may exist, since a site can add its own; only names that resemble these are faults."""
TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<parts>\d+(?::\d+){0,2})")
MIN_SECONDS = 900
"""Shortest reasonable time limit: starting Ray takes about a minute, and the run stops five minutes before the limit."""


def is_batch_script(text: str) -> bool:
    """Whether a file is a script for sbatch."""
    return text.startswith("#!") and any(map(DIRECTIVE.match, text.splitlines()))


def read_script(file: str, text: str) -> tuple[ClusterDocument, list[Fault]]:
    """Return the directives and commands of a script as a document, and faults for directives that Slurm ignores."""
    tree: dict[str, Any] = {}
    lines: dict[KeyPath, int] = {(): 1}
    ignored: list[int] = []
    first_command = 0
    for number, line in enumerate(text.splitlines(), 1):
        if found := DIRECTIVE.match(line):
            for name, value in _options(found[1]):
                tree[name], lines[(name,)] = value, number
            if first_command:
                ignored.append(number)
        elif line.strip() and not line.lstrip().startswith("#"):
            first_command = first_command or number
            for name in COMMANDS:
                if line.lstrip().removeprefix("until ").startswith(f"{name} "):
                    tree[name], lines[(name,)] = line.strip(), number
    rule = f"must be above line {first_command}, the first command: Slurm ignores it there; move it"
    faults = [Fault(f"{file}:{number}", "#SBATCH", rule) for number in ignored]
    return ClusterDocument(file, tree, lines), faults


def _options(text: str) -> Iterator[tuple[str, str]]:
    """Yield the long names and values of the options in a directive; the value of a flag is empty."""
    words = shlex.split(text, comments=True)
    while words:
        word = words.pop(0)
        if word.startswith("--"):
            name, has_value, value = word[2:].partition("=")
        else:
            name, has_value, value = SHORT.get(word[1:2], word[1:2]), word[2:], word[2:]
        if not has_value and words and not words[0].startswith("-"):
            value = words.pop(0)
        yield name, value


def cluster_of(document: ClusterDocument) -> Cluster:
    """Return the nodes of the allocation, which are all alike. Invalid parts count as missing; `faults_of` reports them."""
    nodes = _integer(str(document.value_at("nodes") or 1).rpartition("-")[2]) or 0
    gpus = document.value_at("gres") or ""
    found = re.search(r"(?:^|,)gpu(?::[\w.-]+)*?(?::(\d+))?(?:,|$)", gpus)
    per_node = int(found[1] or 1) if found else _integer(document.value_at("gpus-per-node")) or 0
    group = NodeGroup(
        name="nodes",
        path=("nodes",),
        cpus_path=("cpus-per-task",),
        gpus_path=("gres",),
        market_path=("partition",),
        is_head=False,
        cpus=_integer(document.value_at("cpus-per-task")) or 1,
        gpus=per_node,
        max_count=nodes,
        # Credentials of buckets are in the user's environment or home folder, which the check cannot see.
        reaches=frozenset({"s3", "gs", "gcs"}),
    )
    return Cluster(
        document,
        (group,),
        nodes,
        run_path=RUN_PATH,
        shares_folders=True,
        storage_example="storage=file:///FOLDER/runs for a folder that all nodes share, or s3://BUCKET/raycap",
        tracking_example="tracking.uri=sqlite:////FOLDER/mlflow.db for a folder that all nodes share, or http://HOST:5000",
    )


def faults_of(document: ClusterDocument) -> Iterator[Fault]:
    """Yield the faults of a script, except those that `Cluster.faults` finds."""
    for name in document.tree:
        if name not in (*OPTIONS, *COMMANDS) and (hint := did_you_mean(name, OPTIONS)):
            yield document.fault((name,), f"unknown field{hint}")
    yield from _required(document, "ntasks-per-node", r"1", "1", "each task starts Ray on its node")
    for name in ("nodes", "cpus-per-task"):
        value = document.value_at(name)
        if value is not None and not re.fullmatch(r"[1-9]\d*" if name != "nodes" else r"([1-9]\d*-)?[1-9]\d*", value):
            yield document.fault((name,), f"must be a positive whole number, got {value}; correct it")
    yield from _time_faults(document)
    yield from _required(
        document, "signal", r"B:(SIG)?USR1@\d+", "B:USR1@120", "with it, the script can save trials before the job ends"
    )
    yield from _required(document, "open-mode", r"append", "append", "otherwise the log of earlier attempts is lost")
    if "requeue" not in document.tree or "no-requeue" in document.tree:
        rule = "is missing, so that a preempted job would not continue; add #SBATCH --requeue"
        yield document.fault(("no-requeue" if "no-requeue" in document.tree else "requeue",), rule)
    for name in ("raycap cluster wait", "raycap run"):
        if name not in document.tree:
            yield document.fault((name,), "is missing; copy the command of the template")


def _required(document: ClusterDocument, name: str, pattern: str, value: str, reason: str) -> Iterator[Fault]:
    got = document.value_at(name)
    if got is None or not re.fullmatch(pattern, got):
        rule = f"must be {value}, got {got or 'nothing'}: {reason}; write #SBATCH --{name}={value}"
        yield document.fault((name,), rule)


def _time_faults(document: ClusterDocument) -> Iterator[Fault]:
    text = document.value_at("time")
    if text is None:
        yield document.fault(("time",), "is missing; add the time limit, from which the budget of the run is computed")
        return
    seconds = time_limit_s(text)
    if seconds is None:
        yield document.fault(("time",), f"must be a time such as 04:00:00 or 1-00:00:00, got {text}; correct it")
    elif 0 < seconds < MIN_SECONDS:
        rule = f"must be at least {MIN_SECONDS // 60} minutes, got {text}: the run stops five minutes before this limit"
        yield document.fault(("time",), f"{rule}; raise it")


def time_limit_s(text: str) -> int | None:
    """Return a time limit of Slurm in seconds, or None if it is not valid.

    Two parts are minutes and seconds; after a number of days, the first part is hours.
    """
    found = TIME.fullmatch(text)
    if not found:
        return None
    parts = [int(part) for part in found["parts"].split(":")]
    if found["days"] is not None:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        return int(found["days"]) * 86400 + hours * 3600 + minutes * 60 + seconds
    hours, minutes, seconds = (0, parts[0], 0) if len(parts) == 1 else (0, *parts) if len(parts) == 2 else parts
    return hours * 3600 + minutes * 60 + seconds


def _integer(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None

"""cluster.yaml equals the rendered template, and Ray and EC2 accept it once its placeholders are filled in."""

import os
import socket
import subprocess
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.command_runner import _with_interactive
from ray.autoscaler._private.util import prepare_config, validate_config

from raycap.cluster.cloud.templates import Template, render_template
from raycap.cluster.cloud.versions import Versions
from tests.support.decided import decided

CLUSTER_YAML = Path(__file__).parents[2] / "cluster.yaml"
TESTED = Versions("2.60.0", "3.11")


def read() -> dict:
    return yaml.safe_load(decided(CLUSTER_YAML.read_text()))


def test_the_file_equals_the_output_of_the_command() -> None:
    assert CLUSTER_YAML.read_text() == render_template(Template.AWS, TESTED)


def test_ray_accepts_the_file() -> None:
    validate_config(prepare_config(read()))


def test_the_head_has_no_cpus_and_workers_are_autoscaled_spot_machines() -> None:
    config = read()
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"]["CPU"] == 0
    assert types["gpu_spot"]["min_workers"] == 0
    assert types["gpu_spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert all("ImageId" in kind["node_config"] for kind in types.values())


def test_ray_and_python_are_pinned_to_the_tested_versions() -> None:
    assert read()["docker"]["image"] == f"rayproject/ray:{TESTED.ray}-py311-gpu"


def test_ec2_accepts_the_node_configs() -> None:
    pytest.importorskip("botocore")
    from raycap.cluster.cloud.ec2 import run_instances_faults

    for kind in read()["available_node_types"].values():
        assert run_instances_faults(kind["node_config"]) == []


@pytest.mark.parametrize("template", [Template.AWS, Template.GCP])
def test_mlflow_is_started_on_the_head_unless_it_runs(template: Template, tmp_path: Path) -> None:
    """The command runs as Ray runs it, within shells whose command lines contain its text."""
    config = yaml.safe_load(decided(render_template(template, TESTED)))
    (command,) = [line for line in config["head_start_ray_commands"] if "mlflow server" in line]
    started = tmp_path / "started"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        command = command.replace("/5000", f"/{port}").replace(
            "setsid mlflow server", f"touch {started}; : mlflow server"
        )
        wrapped = " ".join(_with_interactive(command.replace("mlflow.log", "/dev/null")))

        environment = os.environ | {"HOME": str(tmp_path)}

        def start() -> None:
            subprocess.run(wrapped, shell=True, capture_output=True, check=False, timeout=30, env=environment)

        start()
        assert started.exists()
        started.unlink()
        listener.listen()
        start()
        assert not started.exists()

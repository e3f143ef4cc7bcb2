"""cluster.yaml is one that `ray up` takes, and pins what Ray's defaults leave adrift."""

import re
from pathlib import Path

import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parent.parent


def read() -> dict:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_accepts_it() -> None:
    validate_config(prepare_config(read()))


def test_the_head_trains_nothing_and_workers_come_and_go() -> None:
    config = read()
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"]["CPU"] == 0
    assert types["gpu_worker"]["min_workers"] == 0
    assert types["gpu_worker"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert all("ImageId" in kind["node_config"] for kind in types.values())


def test_ray_and_python_are_pinned_to_what_is_tested() -> None:
    setup = " ".join(read()["setup_commands"])
    assert re.search(r"ray\[default,train,tune\]==([\d.]+)", setup).group(1) == ray.__version__
    assert "python3.11" in setup


def test_node_configs_are_what_ec2_takes() -> None:
    from botocore.session import Session
    from botocore.validate import ParamValidator

    model = Session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for kind in read()["available_node_types"].values():
        report = ParamValidator().validate(kind["node_config"] | {"MinCount": 1, "MaxCount": 1}, model)
        assert not report.has_errors(), report.generate_report()

"""Validates node configurations offline against the model of EC2's API that botocore contains."""

from functools import cache
from importlib.util import find_spec
from typing import Any

RAY_MANAGED_FIELDS = ("SubnetIds",)
"""Fields of a node_config that Ray removes before it calls EC2."""


def is_known() -> bool:
    """Whether botocore is installed."""
    return find_spec("botocore") is not None


@cache
def _run_instances() -> Any:
    from botocore.session import Session

    return Session().get_service_model("ec2").operation_model("RunInstances").input_shape


def run_instances_faults(node_config: dict[str, Any]) -> list[str]:
    """Return botocore's messages about a node_config as input of RunInstances, one for each fault.

    The list is empty if botocore is not installed.
    """
    if not is_known():
        return []
    from botocore.validate import ParamValidator

    parameters = {key: value for key, value in node_config.items() if key not in RAY_MANAGED_FIELDS}
    parameters |= {"MinCount": 1, "MaxCount": 1}  # required by EC2 and added by Ray
    report: str = ParamValidator().validate(parameters, _run_instances()).generate_report()
    return report.splitlines()


def market_types() -> tuple[str, ...]:
    """Return the values that EC2 accepts as MarketType, such as spot; empty if botocore is not installed."""
    if not is_known():
        return ()
    return tuple(_run_instances().members["InstanceMarketOptions"].members["MarketType"].enum)

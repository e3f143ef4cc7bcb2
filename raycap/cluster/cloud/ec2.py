"""What EC2 takes, by the model of its API that botocore ships; offline."""

from functools import cache
from importlib.util import find_spec
from typing import Any

RAY_MANAGED_FIELDS = ("SubnetIds",)
"""What Ray takes out of a node_config before EC2 sees it."""


def is_known() -> bool:
    """Whether botocore is installed."""
    return find_spec("botocore") is not None


@cache
def _run_instances() -> Any:
    from botocore.session import Session

    return Session().get_service_model("ec2").operation_model("RunInstances").input_shape


def run_instances_faults(node_config: dict[str, Any]) -> list[str]:
    """What RunInstances would not understand, a line each, in botocore's words; nothing without botocore."""
    if not is_known():
        return []
    from botocore.validate import ParamValidator

    asked = {key: value for key, value in node_config.items() if key not in RAY_MANAGED_FIELDS}
    asked |= {"MinCount": 1, "MaxCount": 1}
    report: str = ParamValidator().validate(asked, _run_instances()).generate_report()
    return report.splitlines()


def market_types() -> tuple[str, ...]:
    """How machines can be bought other than on demand; empty without botocore."""
    if not is_known():
        return ()
    return tuple(_run_instances().members["InstanceMarketOptions"].members["MarketType"].enum)

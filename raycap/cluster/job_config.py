"""Configuration of a Ray job whose workers do not import files of the user in place of installed modules."""

from ray.job_config import JobConfig

from raycap.host import isolation


def isolated_job_config() -> JobConfig:
    """Return a configuration in which workers get no folder in front of their search path, except raycap's if needed.

    By default Ray prepends the working directory of the command in every worker. It does not do so for jobs of Ray Client,
    whose flag has no other effect on the machine of the command (`ray._private.worker.connect` of Ray 2.60).
    """
    return JobConfig(_client_job=True, _py_driver_sys_path=isolation.raycap_folders())

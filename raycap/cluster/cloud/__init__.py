"""Templates of files that start clusters in the cloud, and offline checks of such files.

Modules for formats of files (launcher.py, kuberay.py) have the same functions, `cluster_of` and `faults_of`, and so have
modules for clouds (ec2.py, gce.py): `can_check`, `provider_faults` and `node_faults`. check.py chooses among them.
"""

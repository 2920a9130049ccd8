"""A Ray cluster on this machine: a head without processors, and two nodes with two processors and two GPUs each.

The GPUs are pretended. It needs the extra `ray`.
"""

import os
import subprocess
import sys
from typing import Any

from tests.dashboard.served import free_port

_LIST = """
import ray
ray.init(address={address!r}, log_to_driver=False, logging_level="CRITICAL")
for one in ray.util.list_named_actors(all_namespaces=True):
    if one["namespace"] == "lmsearch":
        {act}
"""


class RayCluster:
    """Ray's daemons; `environment` is what its commands need."""

    kind = "ray"

    def __init__(self, cpus: int = 2) -> None:
        self._cpus = cpus
        os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
        from ray.cluster_utils import Cluster

        dashboard, client = free_port(), free_port()
        head: dict[str, object] = {"num_cpus": 0, "num_gpus": 0, "ray_client_server_port": client}
        head |= {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": dashboard}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self.jobs = f"http://127.0.0.1:{dashboard}"  # for `ray job submit`
        self.client = f"ray://127.0.0.1:{client}"  # for a host that is no node
        self._nodes = [self._add(), self._add()]
        warm = f"import ray; ray.init(address={self.client!r}, log_to_driver=False)"  # the first one takes longest
        subprocess.run([sys.executable, "-c", warm], check=True, capture_output=True, timeout=120)
        self.address: str = self._cluster.address
        self.words = ["--launcher", "ray", "--launcher-option", f"address={self.address}"]
        self.environment: dict[str, str] = {}

    def _add(self) -> Any:
        return self._cluster.add_node(num_cpus=self._cpus, num_gpus=2)

    def _each(self, act: str) -> list[str]:
        program = _LIST.format(address=self.address, act=act)
        said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr
        return said.stdout.splitlines()

    def left(self) -> list[str]:
        """Name the actors that there are, at work or waiting for room."""
        return self._each('print(one["name"])')

    def lose_a_node(self) -> None:
        """End a node as a power cut does, and its workers with it."""
        self._cluster.remove_node(self._nodes.pop(0), allow_graceful=False)

    def heal(self) -> None:
        """Have two nodes again."""
        while len(self._nodes) < 2:
            self._nodes.append(self._add())

    def clear(self) -> None:
        """End all actors, and so their workers."""
        self._each('ray.kill(ray.get_actor(one["name"], namespace="lmsearch"), no_restart=True)')

    def close(self) -> None:
        """End every daemon."""
        self._cluster.shutdown()

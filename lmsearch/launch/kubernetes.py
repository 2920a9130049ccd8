"""Workers as a Job of Kubernetes: the manifest, for `kubectl apply`; nothing here talks to a cluster."""

import re
from collections.abc import Sequence
from typing import Any

from lmsearch.errors import ConfigError
from lmsearch.search.placement import Resources

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_LONGEST_NAME = 50  # characters, so that a pod's name, which is longer, fits in 63
_SAVED = (143, 138, 129, 130)  # exit codes of a worker that was asked to stop, and saved its trial


def manifest(
    study: str,
    image: str,
    secret: str,
    claim: str | None,
    resources: Resources,
    workers: int,
    words: Sequence[str],
    credentials: str | None = None,
) -> dict[str, Any]:
    """Return an Indexed Job with one worker an index; raises `ConfigError` for a name that Kubernetes does not take.

    The store's URL comes from the key `url` of the secret. `claim` is a PersistentVolumeClaim that several nodes may
    write to, where no artifacts are named; it is mounted at /work, the working folder. `credentials` is a secret whose
    keys are variables, such as AWS_ACCESS_KEY_ID. A pod that a node's failure or a preemption ended is replaced and
    does not count; a worker that refuses to work ends its index at once.
    """
    name = "lmsearch-" + re.sub(r"[^a-z0-9-]+", "-", study.lower()).strip("-")
    named = ((secret, "secret"), (claim or "claim", "claim"), (credentials or "secret", "secret"))
    for value, what in ((name[:_LONGEST_NAME], "study"), *named):
        if not _NAME.fullmatch(value):
            raise ConfigError(f"Kubernetes takes no name such as {value!r} for a {what}: small letters, digits and -")
    container: dict[str, Any] = {
        "name": "worker",
        "image": image,
        "workingDir": "/work",
        # The name of a worker: a pod that replaces another one is another worker.
        "command": ["sh", "-c", 'exec lmsearch worker --name "k8s-$HOSTNAME" "$@"', "worker", *words],
        "env": [
            {"name": "LMSEARCH_STORAGE", "valueFrom": {"secretKeyRef": {"name": secret, "key": "url"}}},
            {"name": "LMSEARCH_LAUNCHER", "value": "kubernetes"},
            {"name": "OMP_NUM_THREADS", "value": "1"},
        ],
        "resources": _resources(resources),
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 90,  # for a worker to save its trial
        "containers": [container],
    }
    if credentials is not None:
        container["envFrom"] = [{"secretRef": {"name": credentials}}]
    volume = {"emptyDir": {}} if claim is None else {"persistentVolumeClaim": {"claimName": claim}}
    container["volumeMounts"] = [{"name": "work", "mountPath": "/work"}]
    pod["volumes"] = [{"name": "work", **volume}]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name[:_LONGEST_NAME].rstrip("-."),
            "labels": {"app": "lmsearch", "lmsearch/study": _label(study)},
        },
        "spec": {
            "completionMode": "Indexed",
            "completions": workers,
            "parallelism": workers,
            "backoffLimitPerIndex": 5,
            "maxFailedIndexes": workers,
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {"action": "Ignore", "onExitCodes": {"containerName": "worker", "operator": "In",
                                                         "values": sorted(_SAVED)}},
                    {"action": "FailIndex", "onExitCodes": {"containerName": "worker", "operator": "In",
                                                            "values": [2]}},
                ]
            },
            "template": {"metadata": {"labels": {"app": "lmsearch"}}, "spec": pod},
        },
    }  # fmt: skip


def _label(study: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", study)[:63].strip("-_.") or "study"


def _resources(resources: Resources) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    if resources.gpus:
        if resources.gpus != int(resources.gpus):
            raise ConfigError(f"Kubernetes gives whole GPUs, not {resources.gpus:g}")
        limits["nvidia.com/gpu"] = int(resources.gpus)
    requests: dict[str, Any] = {}
    if resources.cpus is not None:
        requests["cpu"] = resources.cpus
    if resources.memory is not None:
        limits["memory"] = requests["memory"] = resources.memory + ("i" if resources.memory[-1].isalpha() else "")
    found = {"limits": limits, "requests": requests}
    return {name: values for name, values in found.items() if values}

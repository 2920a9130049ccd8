"""The Job for Kubernetes, against the schema that Kubernetes publishes."""

import json

import pytest

from tests.bureau import Bureau
from tests.conftest import Cli

pytestmark = pytest.mark.heavy


@pytest.mark.parametrize(
    "extra",
    [
        (),
        ("--claim", "work", "--gpus-per-worker", "1", "--memory-per-worker", "8G"),
        ("--artifacts", "s3://texts/lm", "--credentials", "s3-keys"),
    ],
)
def test_the_job_is_one_that_kubernetes_takes(sqlite_bureau: Bureau, cli: Cli, extra: tuple[str, ...]) -> None:
    import kubernetes_validate  # of the extra test-heavy, which other tests can do without

    words = ("script", "kubernetes", "tiny", "--image", "registry.example/lmsearch:0.3", "--workers", "8", *extra)
    said = cli(*words, cwd=sqlite_bureau.folder, LMSEARCH_STORAGE=sqlite_bureau.url)
    assert said.returncode == 0, said.stderr
    job = json.loads(said.stdout)
    assert job["spec"]["completions"] == 8
    versions = kubernetes_validate.latest_version(), "1.33"  # the first with backoffLimitPerIndex for everybody
    for version in versions:
        kubernetes_validate.validate(job, version, strict=True)
    job["spec"]["backoffLimitPerIndexes"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, versions[0], strict=True)

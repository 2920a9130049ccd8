"""A server of S3 on this machine: moto's, in a process of its own, behind a proxy that can cut the network."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from lmsearch.chaos.proxy import Mode, Proxy
from tests.bureau import wait_for

BUCKET = "texts"


class S3Server:
    """An S3 whose objects live as long as it does; `url` is where artifacts go, `environment` how it is reached."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        with (folder / "moto.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        self._proxy = Proxy(("127.0.0.1", port))
        self.url = f"s3://{BUCKET}/lm"
        self.environment = {
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._proxy.port}",
        }
        wait_for(lambda: _answers(port), 60)
        self._call("make_bucket")

    def cut(self) -> None:
        """Be as a server behind a network that is down."""
        self._proxy.mode = Mode.REFUSE
        self._proxy.cut()

    def mend(self) -> None:
        """Be reached again."""
        self._proxy.mode = Mode.FORWARD

    def names(self) -> list[str]:
        """Give the names of all objects, without the bucket."""
        return self._call("names").split()

    def _call(self, what: str) -> str:
        environment = dict(os.environ) | self.environment
        command = [sys.executable, "-c", _CALLS[what], BUCKET]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    def close(self) -> None:
        self._proxy.close()
        self._process.terminate()
        self._process.wait()


_CALLS = {
    "make_bucket": "import sys, s3fs; s3fs.S3FileSystem().mkdir(sys.argv[1])",
    "names": "import sys, s3fs; print('\\n'.join(n.partition('/')[2] for n in s3fs.S3FileSystem().find(sys.argv[1])))",
}


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True

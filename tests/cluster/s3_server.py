"""A real S3 server of a test's own that can be stopped and started again, and the credentials for it as a Secret."""

import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from cluster.commands import run_cluster

KEY_ID, SECRET = "test-key", "test-secret-of-this-machine"
BUCKET = "bench"


@dataclass
class Server:
    """versitygw over a folder; keeps its port when it comes back."""

    folder: Path
    port: int = 0
    address: str = "127.0.0.1"
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Make the bucket and the credentials, take a free port."""
        (self.objects / BUCKET).mkdir(parents=True)
        self.credentials.mkdir()
        self.give_credentials(SECRET)
        with socket.socket() as probe:
            probe.bind((self.address, 0))
            self.port = probe.getsockname()[1]

    @property
    def objects(self) -> Path:
        """Where the server keeps buckets."""
        return self.folder / "objects"

    @property
    def credentials(self) -> Path:
        """Files as a mounted Secret has them."""
        return self.folder / "credentials"

    @property
    def endpoint(self) -> str:
        """Address of the server."""
        return f"http://{self.address}:{self.port}"

    @property
    def variables(self) -> dict[str, str]:
        """What a pod is told of this store."""
        return {"LLEM_STORE_ENDPOINT": self.endpoint, "LLEM_STORE_CREDENTIALS": str(self.credentials)}

    @property
    def keys(self) -> dict[str, str]:
        """The usual variables of a person's shell."""
        return {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET}

    def give_credentials(self, secret: str) -> None:
        """Write the Secret's files."""
        (self.credentials / "AWS_ACCESS_KEY_ID").write_text(KEY_ID)
        (self.credentials / "AWS_SECRET_ACCESS_KEY").write_text(secret)

    def start(self) -> None:
        """Start, and wait until it listens."""
        run_cluster("build", "versitygw")
        program = run_cluster("which", "versitygw").strip()
        command = [program, "--access", KEY_ID, "--secret", SECRET, "--port", f"{self.address}:{self.port}"]
        self._process = subprocess.Popen(
            [*command, "posix", str(self.objects)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline_s = time.monotonic() + 20
        while time.monotonic() < deadline_s:
            with socket.socket() as probe:
                if probe.connect_ex((self.address, self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("versitygw does not listen")

    def stop(self) -> None:
        """End it; its objects stay."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def names(self) -> set[str]:
        """All objects of the bucket."""
        root = self.objects / BUCKET
        return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and ".sgwtmp" not in p.parts}

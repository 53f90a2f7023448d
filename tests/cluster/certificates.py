"""Makes the cluster's own certificate authority, its certificates and its kubeconfigs, with openssl."""

import dataclasses
import json
import subprocess
from pathlib import Path

_DAYS = "30"


@dataclasses.dataclass(frozen=True)
class Authority:
    """A certificate authority in a folder; every method writes `<name>.crt` and `<name>.key` there.

    Attributes:
        folder: Where keys and certificates are.
        server: The API server's URL, for kubeconfigs.

    """

    folder: Path
    server: str

    def create(self) -> None:
        """Make the authority's own key and certificate."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._key("ca")
        identity = ("-subj", "/CN=llem-test", "-days", _DAYS)
        _openssl("req", "-x509", "-new", "-key", self.key("ca"), *identity, "-out", self.crt("ca"))

    def crt(self, name: str) -> Path:
        """The file of a certificate."""
        return self.folder / f"{name}.crt"

    def key(self, name: str) -> Path:
        """The file of a private key."""
        return self.folder / f"{name}.key"

    def service_account_keys(self) -> None:
        """Write the pair that signs and checks ServiceAccount tokens: `sa.key`, `sa.pub`."""
        self._key("sa")
        _openssl("pkey", "-in", self.key("sa"), "-pubout", "-out", self.folder / "sa.pub")

    def server_certificate(self, name: str, subject: str, alternatives: list[str]) -> None:
        """Write a certificate for a server that is reached under these names (`DNS:…`, `IP:…`)."""
        self._sign(name, subject, f"subjectAltName={','.join(alternatives)}\nextendedKeyUsage=serverAuth,clientAuth\n")

    def client_certificate(self, name: str, user: str, group: str = "") -> None:
        """Write a certificate that the API server takes for this user and group."""
        self._sign(name, f"/O={group}/CN={user}" if group else f"/CN={user}", "extendedKeyUsage=clientAuth\n")

    def kubeconfig(self, name: str, user: str, group: str = "") -> Path:
        """Write a client certificate and a kubeconfig that uses it; give the kubeconfig's file."""
        self.client_certificate(name, user, group)
        path = self.folder / f"{name}.kubeconfig"
        path.write_text(json.dumps(self._kubeconfig(name), indent=1), encoding="utf-8")
        path.chmod(0o600)
        return path

    def _kubeconfig(self, name: str) -> dict[str, object]:
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "llem",
            "clusters": [
                {"name": "llem", "cluster": {"server": self.server, "certificate-authority": str(self.crt("ca"))}}
            ],
            "users": [
                {"name": name, "user": {"client-certificate": str(self.crt(name)), "client-key": str(self.key(name))}}
            ],
            "contexts": [{"name": "llem", "context": {"cluster": "llem", "user": name}}],
        }

    def _sign(self, name: str, subject: str, extensions: str) -> None:
        self._key(name)
        request, extra = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extra.write_text(extensions, encoding="utf-8")
        _openssl("req", "-new", "-key", self.key(name), "-subj", subject, "-out", request)
        _openssl(
            "x509", "-req", "-in", request, "-CA", self.crt("ca"), "-CAkey", self.key("ca"), "-CAcreateserial",
            "-days", _DAYS, "-extfile", extra, "-out", self.crt(name),
        )  # fmt: skip

    def _key(self, name: str) -> None:
        _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", self.key(name))
        self.key(name).chmod(0o600)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

"""Which images run on the node, and their way from the product's own Dockerfiles into containerd."""

import dataclasses
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import IO

import binaries
import builder
import containers
from places import CONTAINERD, IMAGES, ROOT, SOURCE, ClusterError, locked, say

_BLOBS = CONTAINERD / "io.containerd.content.v1.content" / "blobs" / "sha256"


@dataclasses.dataclass(frozen=True)
class Image:
    """An image: its name, its Dockerfile, and what it is built from.

    Attributes:
        name: Repository and tag; pods write `localhost/` before it.
        dockerfile: How it is built.
        inputs: Files and folders whose change makes it old.
        context: The folder from which the Dockerfile copies.
        arguments: Build arguments, by name.
        needs: Images that must be there first.
        target: The stage to build, the last one if empty.

    """

    name: str
    dockerfile: Path
    inputs: tuple[Path, ...] = ()
    context: Path = ROOT
    arguments: tuple[tuple[str, str], ...] = ()
    needs: tuple["Image", ...] = ()
    target: str = ""

    @property
    def reference(self) -> str:
        """What a pod writes as `image`, with imagePullPolicy Never."""
        return f"localhost/{self.name}"

    def digest(self) -> str:
        """SHA-256 over the Dockerfile, its arguments, every input file and every image below."""
        found = hashlib.sha256(f"{self.arguments}{self.target}{builder.BASE_DIGEST}".encode())
        for path in _files((self.dockerfile, *self.inputs)):
            found.update(f"{path}\0".encode() + path.read_bytes())
        for image in self.needs:
            found.update(image.digest().encode())
        return found.hexdigest()


_CODE = tuple(ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE", "runner", "operator"))
_SCHEMA = ROOT / "docs/reference/experiment.schema.json"
_ON_BASE = (("BASE", builder.BASE),)
SHELL = Image("llem-test-shell:1", SOURCE / "images/shell.Dockerfile", (Path("/bin/busybox"),), context=Path("/bin"))
OPERATOR = Image(
    "llem-operator:dev", ROOT / "images/operator/Dockerfile",
    (*_CODE, _SCHEMA, ROOT / "requirements/operator-image.txt"), arguments=_ON_BASE,
)  # fmt: skip
_TORCH = Image(
    "llem-torch:dev", ROOT / "images/pytorch/Dockerfile", (ROOT / "requirements/pytorch-image.txt",),
    arguments=_ON_BASE, target="torch",
)  # fmt: skip
_MODEL = Image(
    "llem-demo-model:dev", ROOT / "images/demo-model/Dockerfile", (ROOT / "runner/llenergymeasure/models.py",),
    arguments=(("TORCH", _TORCH.reference),), needs=(_TORCH,),
)  # fmt: skip
PYTORCH = Image(
    "llem-pytorch:dev", ROOT / "images/pytorch/Dockerfile", (*_CODE, _SCHEMA),
    arguments=(*_ON_BASE, ("MODEL", _MODEL.reference)), needs=(_TORCH, _MODEL),
)  # fmt: skip
STORE = Image(
    "llem-versitygw:dev", SOURCE / "images/versitygw.Dockerfile", (binaries.path("versitygw"),),
    context=binaries.path("versitygw").parent,
)  # fmt: skip
BY_NAME = {"shell": SHELL, "operator": OPERATOR, "pytorch": PYTORCH, "store": STORE}


def build(image: Image) -> str:
    """Build an image and those below it, each unless it was built from the same input; give the digest of its input."""
    for below in image.needs:
        build(below)
    with locked(IMAGES / ".lock"):
        digest = image.digest()
        if _note(image, "built") != digest:
            begin = time.monotonic()
            say(f"building image {image.reference} ...")
            builder.build(image.reference, image.dockerfile, image.context, _arguments(image), target=image.target)
            _write_note(image, "built", digest)
            _prune_replaced_torch(image)
            builder.let_go()
            say(f"  {image.reference}: {time.monotonic() - begin:.0f} s")
    return digest


def load(state: Path, wanted: tuple[Image, ...]) -> None:
    """Build what is old or missing and import what containerd has not got."""
    for image in wanted:
        digest = build(image)
        with locked(IMAGES / ".lock"):
            present = containers.ctr(state, "images", "list", "--quiet").split()
            if image.reference not in present or _note(image, "loaded") != digest:
                begin = time.monotonic()
                say(f"importing {image.reference} ...")
                _import(state, image)
                _forget_replaced(state)
                builder.let_go()
                _write_note(image, "loaded", digest)
                say(f"  {image.reference}: {time.monotonic() - begin:.0f} s")


def let_go() -> None:
    """Wait for whoever builds and unmount what builds have left."""
    with locked(IMAGES / ".lock"):
        builder.let_go()


def _prune_replaced_torch(image: Image) -> None:
    """After a new lock, free the five gigabytes of the old one; the next build of code takes seconds longer."""
    digest = _note(_TORCH, "built")
    if image is PYTORCH and _note(_TORCH, "pruned") != digest:
        builder.prune()
        _write_note(_TORCH, "pruned", digest)


def _arguments(image: Image) -> dict[str, str]:
    """The build arguments; the schema's digest is the one of `core.introspection.schema_digest`."""
    schema = json.loads(_SCHEMA.read_text(encoding="utf-8"))
    digest = hashlib.sha256(json.dumps(schema, sort_keys=True).encode()).hexdigest()
    labels = {"SCHEMA_DIGEST": digest} if _SCHEMA in image.inputs else {}
    return dict(image.arguments) | labels


def _import(state: Path, image: Image) -> None:
    """Hand containerd the blobs that it has not got.

    Layers are kept uncompressed, so that a layer's name is the digest of its content. The folder that skopeo writes to
    starts with hard links to containerd's own blobs: skopeo skips those, and so does the archive for containerd. After
    a change of code that is kilobytes instead of gigabytes.
    """
    _remove_exports()
    with tempfile.TemporaryDirectory(prefix=".export-", dir=CONTAINERD) as folder:
        layout = Path(folder)
        known = _link_blobs(layout / "blobs" / "sha256")
        builder.write_layout(image.reference, layout)
        _name_image(layout / "index.json", image.reference)
        try:
            _send(state, layout, leave_out=known)
        except ClusterError:  # a blob that we counted on was removed meanwhile: send all
            _send(state, layout, leave_out=frozenset())


def _link_blobs(target: Path) -> frozenset[str]:
    target.mkdir(parents=True)
    known = [blob.name for blob in _BLOBS.glob("*")] if _BLOBS.exists() else []
    for name in known:
        (target / name).hardlink_to(_BLOBS / name)
    return frozenset(known)


def _name_image(index: Path, reference: str) -> None:
    content = json.loads(index.read_text(encoding="utf-8"))
    content["manifests"][0].setdefault("annotations", {})["io.containerd.image.name"] = reference
    index.write_text(json.dumps(content), encoding="utf-8")


def _send(state: Path, layout: Path, *, leave_out: frozenset[str]) -> None:
    manifest = json.loads((layout / "index.json").read_text(encoding="utf-8"))["manifests"][0]["digest"].split(":")[1]
    command = ["ctr", "--address", str(containers.socket(state)), "--namespace", "k8s.io", "images", "import", "-"]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors) as process,
    ):
        assert process.stdin is not None
        try:
            _write_archive(process.stdin, layout, leave_out - {manifest})
            process.stdin.close()
        except BrokenPipeError:
            pass
        if process.wait() != 0:
            errors.seek(0)
            raise ClusterError(f"{' '.join(command)}: {errors.read().decode(errors='replace')[-2000:]}")


def _write_archive(output: IO[bytes], layout: Path, leave_out: frozenset[str]) -> None:
    with tarfile.open(fileobj=output, mode="w|") as archive:
        for path in sorted(layout.rglob("*"), reverse=True):
            if path.is_file() and path.name not in leave_out:
                archive.add(path, arcname=str(path.relative_to(layout)))


def _files(paths: tuple[Path, ...]) -> list[Path]:
    found = [f for path in paths for f in (path.rglob("*") if path.is_dir() else [path])]
    return sorted(f for f in found if f.is_file() and "__pycache__" not in f.parts)


def _note(image: Image, what: str) -> str:
    file = IMAGES / f"{image.name.replace(':', '-')}.{what}"
    return file.read_text(encoding="ascii") if file.exists() else ""


def _write_note(image: Image, what: str, digest: str) -> None:
    (IMAGES / f"{image.name.replace(':', '-')}.{what}").write_text(digest, encoding="ascii")


def compressed_bytes(image: Image) -> int:
    """The size of an image as a registry would hold and send it."""
    with tempfile.TemporaryDirectory(dir=IMAGES) as folder:
        builder.write_layout(image.reference, Path(folder), compressed=True)
        return sum(blob.stat().st_size for blob in (Path(folder) / "blobs" / "sha256").iterdir())


def _remove_exports() -> None:
    """Remove what a killed import has left; its links would keep deleted layers on the disk."""
    CONTAINERD.mkdir(parents=True, exist_ok=True)
    for folder in CONTAINERD.glob(".export-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _forget_replaced(state: Path) -> None:
    """Delete the second name, the digest, that Kubernetes gave to images whose first name now means another."""
    rows = [line.split() for line in containers.ctr(state, "images", "list").splitlines()[1:]]
    living = {target for name, _, target, *_ in rows if not name.startswith("sha256:")}
    replaced = [name for name, _, target, *_ in rows if name.startswith("sha256:") and target not in living]
    if replaced:
        containers.ctr(state, "images", "remove", "--sync", *replaced)

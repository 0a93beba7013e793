"""`steer packs`: what was exported comes back the same, and a pack that was changed in any way is refused."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_other_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from steering.client import ApiError, Client
from steering.client.packs import export_pack, import_pack, read_pack
from steering.errors import InvalidRequest
from steering.store.blob import decode, encode
from tests.app.cli.conftest import Steer
from tests.app.conftest import D_MODEL
from tests.app.running import running

FLOOR = {"vector": "other", "above": 0.5}
CHEERFUL: list[Any] = [
    {"vector": "calm", "strength": 0.5, "when": FLOOR, "strength_from": {"vector": "third", "bias": 0.2}}
]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running() as found, Client(found) as client:
        client.register_vector("calm", {"1": [1.0] * D_MODEL}, description="an old version")
        client.register_vector("calm", {"1": [1.0, -1.0] * (D_MODEL // 2), "2": [3.0] * D_MODEL}, tags=["mood"])
        client.register_vector("other", {"1": [2.0] * D_MODEL})
        client.register_vector("third", {"2": [1.0] * D_MODEL})
        yield found


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as one:
        one.put_profile("cheerful", CHEERFUL, description="a good mood")
        yield one


def key_files(folder: Path, name: str = "pack") -> tuple[Path, Path]:
    """Writes a private and a public key, as openssl does."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.mark.parametrize("name", ["pack", "pack.zip"])
def test_a_pack_brings_vectors_and_profiles_back(steer: Steer, client: Client, tmp_path: Path, name: str) -> None:
    private, public = key_files(tmp_path)
    path, other = str(tmp_path / name), client.get_vector("other").id
    printed, _ = steer("packs", "export", path, "--profile", "cheerful", "--vector", "calm@1", "--sign", str(private))
    for one in ("calm@1", "calm@2", other, "third@1", "profile cheerful", "signed with the key", "9 digests match"):
        assert one in printed
    printed, _ = steer("packs", "verify", path, "--public-key", str(public), local=True)
    assert "signed with the key" in printed
    before = {one: client.get_vector(one) for one in ("calm@1", "calm@2", other, "third@1")}
    client.delete_profile("cheerful")
    client.delete_vector("other")
    client.register_vector("other", {"1": [-1.0] * D_MODEL})  # its version is another now
    printed, error = steer("packs", "import", path, "--public-key", str(public))
    assert not error
    ids = {"calm@1": "calm@1", "calm@2": "calm@2", "third@1": "third@1", other: client.get_vector("other").id}
    assert ids[other] != other
    assert f"{other} is {ids[other]} here" in printed
    for there, here in ids.items():
        assert client.get_vector(here).sha256 == before[there].sha256
        assert client.get_vector(here).tags == before[there].tags
    profile = client.get_profile("cheerful")
    (stored,) = profile.interventions
    assert profile.description == "a good mood"
    assert stored.strength_from is not None
    assert (stored.vector, stored.strength_from.vector, stored.strength) == ("calm@2", "third@1", 0.5)
    assert stored.model_dump(mode="json")["when"]["vector"] == ids[other]
    client.delete_vector("other", force=True)  # for the next form
    client.delete_profile("cheerful")
    client.register_vector("other", {"1": [2.0] * D_MODEL})


def test_a_shared_profile_is_not_packed_with_a_vector_of_the_key(client: Client, address: str, tmp_path: Path) -> None:
    class OwnVectors(Client):
        """Sees a vector of its own in place of the shared one."""

        def get_vector(self, name: str) -> Any:
            found = super().get_vector(name)
            return found.model_copy(update={"namespace": "alice"}) if name.startswith("other") else found

    with OwnVectors(address) as own:
        with pytest.raises(InvalidRequest, match="'cheerful' of namespace 'shared' means its own vector 'other'"):
            export_pack(own, tmp_path / "pack", profiles=["cheerful"])
        assert not (tmp_path / "pack").exists()
        export_pack(own, tmp_path / "pack", vectors=["other"])


def test_a_vector_that_could_not_be_imported_again_is_not_packed(client: Client, address: str, tmp_path: Path) -> None:
    class LongNotes(Client):
        """Exports vectors with as many notes as given."""

        notes = 0

        def export_vector(self, name: str, *_: Any, **__: Any) -> bytes:
            vector = decode(super().export_vector(name))
            return encode(replace(vector, provenance={"notes": "a" * self.notes}))

    with LongNotes(address) as noting:
        export_pack(noting, tmp_path / "short", vectors=["other"])
        noting.notes = 70_000
        with pytest.raises(ApiError, match="metadata"):
            client.import_vector(noting.export_vector("other"), name="noted")
        with pytest.raises(InvalidRequest, match="bytes of metadata, such as its card; servers import at most 65536"):
            export_pack(noting, tmp_path / "pack", vectors=["other"])
        assert not (tmp_path / "pack").exists()


def test_equal_content_is_an_equal_archive_and_is_stored_once(client: Client, tmp_path: Path) -> None:
    one = export_pack(client, tmp_path / "one.zip", profiles=["cheerful"])
    export_pack(client, tmp_path / "two.zip", profiles=["cheerful"])
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with pytest.raises(InvalidRequest, match="cheerful"):
        import_pack(client, one)
    before = [found.id for found in client.list_vectors().data]
    ids = import_pack(client, one, replace=True)
    assert all(there == here for there, here in ids.items())
    assert [found.id for found in client.list_vectors().data] == before


def test_a_vector_with_more_than_a_page_of_versions_is_stored_once(client: Client, tmp_path: Path) -> None:
    client.register_vector("many", {"1": [1.0] * D_MODEL})
    pack = export_pack(client, tmp_path / "pack", vectors=["many@1"])
    for number in range(2, 54):
        client.register_vector("many", {"1": [float(number), *[1.0] * (D_MODEL - 1)]})
    assert import_pack(client, pack) == {"many@1": "many@1"}
    assert client.get_vector("many").version == 53
    client.delete_vector("many")


def test_a_pack_without_a_signature_says_so(steer: Steer, client: Client, tmp_path: Path) -> None:
    export_pack(client, tmp_path / "pack", vectors=["calm"])
    card = json.loads((tmp_path / "pack" / "cards" / "calm-2.json").read_text())
    assert card["recommended"]["layers"] == list(client.get_vector("calm").recommended.layers)
    assert "not signed" in steer("packs", "verify", str(tmp_path / "pack"), local=True)[0]
    assert "not signed" in steer("packs", "import", str(tmp_path / "pack"))[1]
    _, public = key_files(tmp_path)
    _, error = steer("packs", "verify", str(tmp_path / "pack"), "--public-key", str(public), code=1, local=True)
    assert "is not signed; expected a signature" in error


def test_a_failed_export_leaves_nothing(client: Client, tmp_path: Path) -> None:
    for name in ("pack", "pack.zip"):
        with pytest.raises(ApiError, match="nothing"):
            export_pack(client, tmp_path / name, vectors=["nothing"])
        assert not (tmp_path / name).exists()
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError):
        export_pack(client, tmp_path / "there", vectors=["calm"])
    with pytest.raises(InvalidRequest, match="would be empty"):
        export_pack(client, tmp_path / "pack")


def rewritten(pack: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the manifest of a pack."""
    manifest = json.loads((pack / "manifest.json").read_text())
    change(manifest)
    (pack / "manifest.json").write_text(json.dumps(manifest))


def changed_profile(pack: Path) -> None:
    """Lets the profile name a vector that is not in the pack, with the right digest."""
    file = pack / "profiles" / "cheerful.json"
    file.write_text(file.read_text().replace("third@1", "third@9"))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    rewritten(pack, lambda manifest: manifest["files"].update({"profiles/cheerful.json": digest}))


def damaged(pack: Path) -> None:
    file = pack / "vectors" / "calm-2.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")


def linked(pack: Path) -> None:
    file = pack / "vectors" / "calm-2.safetensors"
    shutil.move(file, pack.parent / "elsewhere")
    file.symlink_to(pack.parent / "elsewhere")


def outside(manifest: dict[str, Any]) -> None:
    manifest["vectors"][0]["file"] = "vectors/../../secret-1.safetensors"


CHANGES: list[tuple[Callable[[Path], Any], str]] = [
    (damaged, "vectors/calm-2.safetensors is not the file of the manifest"),
    (lambda pack: (pack / "cards" / "calm-2.json").unlink(), "lacks files"),
    (lambda pack: (pack / "vectors" / "more.pkl").write_bytes(b"x"), "does not list: .'vectors/more.pkl'"),
    (lambda pack: (pack / "manifest.json").unlink(), "no manifest.json"),
    (lambda pack: (pack / "manifest.json").write_bytes(b" " * (2 << 20)), "more than 1048576 bytes"),
    (lambda pack: (pack / "manifest.json").write_bytes(b"[" * 100_000), "manifest.json"),
    (lambda pack: rewritten(pack, outside), "vectors.0.file"),
    (lambda pack: rewritten(pack, lambda manifest: manifest.update(vectors=[])), "'files' must be"),
    (lambda pack: rewritten(pack, lambda manifest: manifest.update(format=2)), "format"),
    (changed_profile, "names .'third@9'., which are not in the pack"),
    (linked, "symbolic links"),
]


def test_a_pack_that_was_changed_is_refused(client: Client, tmp_path: Path) -> None:
    private, _ = key_files(tmp_path)
    export_pack(client, tmp_path / "signed", profiles=["cheerful"], signing_key=private)
    shutil.copytree(tmp_path / "signed", tmp_path / "pack")
    (tmp_path / "pack" / "manifest.sig").unlink()
    for number, (change, says) in enumerate(CHANGES):
        pack = tmp_path / f"changed-{number}"
        shutil.copytree(tmp_path / "pack", pack)
        change(pack)
        with pytest.raises(InvalidRequest, match=says):
            read_pack(pack)
    rewritten(tmp_path / "signed", lambda manifest: manifest.update(description="another"))
    with pytest.raises(InvalidRequest, match="the signature is not valid"):
        read_pack(tmp_path / "signed")
    rewritten(tmp_path / "pack", lambda manifest: manifest.update(model_fingerprint="another"))
    with pytest.raises(InvalidRequest, match="the pack is for"):
        import_pack(client, read_pack(tmp_path / "pack"), replace=True)


def test_an_archive_that_is_none_or_ambiguous_is_refused(client: Client, tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_bytes(b"text")
    with pytest.raises(InvalidRequest, match="neither a folder nor a zip archive"):
        read_pack(tmp_path / "text.zip")
    export_pack(client, tmp_path / "twice.zip", vectors=["calm"])
    with zipfile.ZipFile(tmp_path / "twice.zip", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("manifest.json", b"{}")
    with pytest.raises(InvalidRequest, match="two files of one name"):
        read_pack(tmp_path / "twice.zip")


def test_keys_of_another_kind_are_refused(client: Client, tmp_path: Path) -> None:
    private, _ = key_files(tmp_path)
    _, public = key_files(tmp_path, "another")
    other = generate_other_key(SECP256R1())
    (tmp_path / "ec.key").write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    for file, says in ((tmp_path / "ec.key", "another kind"), (public, "not a private key")):
        with pytest.raises(InvalidRequest, match=says):
            export_pack(client, tmp_path / "pack", vectors=["calm"], signing_key=file)
    export_pack(client, tmp_path / "pack", vectors=["calm"], signing_key=private)
    for file, says in ((public, "expected a signature by"), (private, "not a public key")):
        with pytest.raises(InvalidRequest, match=says):
            read_pack(tmp_path / "pack", file)

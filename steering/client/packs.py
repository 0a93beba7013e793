"""Packs: a folder or a zip archive of vectors, their cards and profiles, with a manifest of SHA-256 digests, which may be signed with Ed25519.

Files are read by the names that the manifest gives, never extracted, and no larger than MAX_FILE_BYTES.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias
from zipfile import BadZipFile, ZipFile, ZipInfo

from pydantic import Field, ValidationError, model_validator

from steering.client.api import Client
from steering.client.connection import ApiError
from steering.errors import InvalidRequest
from steering.namespaces import SHARED
from steering.schemas.base import Request
from steering.schemas.resources import ProfileAnswer
from steering.schemas.vectors import MAX_METADATA_BYTES, VectorAnswer
from steering.spec import InterventionSpec, SteeringSpec, pinned, vector_names

MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
MAX_FILE_BYTES = 64 << 20
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILES = 2048
_NAME = r"[a-z0-9][a-z0-9._-]{0,63}"

Sha256: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Write: TypeAlias = Callable[[str, bytes], None]


class PackedVector(Request):
    """A vector of a pack. sha256: of its stored bytes, as the server gives it; the digest of the file differs, since that has labels."""

    id: Annotated[str, Field(pattern=rf"^{_NAME}@[1-9][0-9]{{0,9}}$")]
    sha256: Sha256
    file: Annotated[str, Field(pattern=rf"^vectors/{_NAME}-[1-9][0-9]{{0,9}}\.safetensors$")]
    card: Annotated[str, Field(pattern=rf"^cards/{_NAME}-[1-9][0-9]{{0,9}}\.json$")]

    @property
    def name(self) -> str:
        """The name without its version."""
        return self.id.partition("@")[0]


class PackedProfile(Request):
    """A profile of a pack, whose interventions name vectors of the pack with their versions."""

    name: Annotated[str, Field(pattern=rf"^{_NAME}$")]
    file: Annotated[str, Field(pattern=rf"^profiles/{_NAME}\.json$")]


class ProfileFile(Request):
    """What the file of a profile contains."""

    description: Annotated[str, Field(max_length=4096)] = ""
    interventions: Annotated[tuple[InterventionSpec, ...], Field(max_length=64)]


class Manifest(Request):
    """What a pack contains. files: the SHA-256 of each file but the manifest and its signature."""

    format: Literal[1]
    description: Annotated[str, Field(max_length=4096)] = ""
    model: Annotated[str, Field(max_length=512)]
    model_fingerprint: Annotated[str, Field(max_length=512)]
    vectors: Annotated[tuple[PackedVector, ...], Field(max_length=MAX_FILES // 2)]
    profiles: Annotated[tuple[PackedProfile, ...], Field(max_length=MAX_FILES // 2)]
    files: Annotated[dict[str, Sha256], Field(max_length=MAX_FILES)]

    @model_validator(mode="after")
    def _lists_its_files(self) -> "Manifest":
        named = [path for one in self.vectors for path in (one.file, one.card)]
        named += [one.file for one in self.profiles]
        if len(named) != len(set(named)) or set(named) != set(self.files):
            raise ValueError("'files' must be the files of 'vectors' and 'profiles', each once")
        return self


class Signature(Request):
    """A signature of the bytes of the manifest."""

    algorithm: Literal["ed25519"]
    public_key: Sha256
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack whose digests were verified.

    signer: the public key whose signature was verified, 32 bytes in hexadecimal; None for an unsigned pack.
    """

    path: Path
    manifest: Manifest
    signer: str | None

    def read(self, name: str) -> bytes:
        """Reads a file again. Raises InvalidRequest where it is not the one of the manifest any more."""
        with _reading(self.path) as (_, read):
            content = read(name, MAX_FILE_BYTES)
        _check_digest(name, content, self.manifest)
        return content

    def profile(self, packed: PackedProfile) -> ProfileFile:
        """Reads a profile. Raises InvalidRequest where it names vectors that the pack does not have."""
        found: ProfileFile = _parsed(ProfileFile, self.read(packed.file), packed.file)
        known = {one.id for one in self.manifest.vectors}
        others = set(vector_names(SteeringSpec(interventions=found.interventions))) - known
        if others:
            raise InvalidRequest(f"{packed.file} names {sorted(others)[:5]}, which are not in the pack", param="file")
        return found


def read_pack(path: Path, public_key: Path | None = None) -> Pack:
    """Reads a pack and verifies it: every digest, that there are no other files, and its signature if it has one.

    public_key: a PEM file; the signature must be by this key. Raises InvalidRequest naming what does not fit.
    """
    with _reading(path) as (names, read):
        if MANIFEST not in names:
            raise InvalidRequest(f"{path.name} is not a pack: it has no {MANIFEST}", param="path")
        text = read(MANIFEST, MAX_MANIFEST_BYTES)
        manifest = _parsed(Manifest, text, MANIFEST)
        signer = None
        if SIGNATURE in names:
            signer = _signer(text, _parsed(Signature, read(SIGNATURE, MAX_MANIFEST_BYTES), SIGNATURE))
        if others := sorted(names - {MANIFEST, SIGNATURE, *manifest.files}):
            raise InvalidRequest(f"{path.name} has files that its manifest does not list: {others[:5]}", param="path")
        if missing := sorted(manifest.files.keys() - names):
            raise InvalidRequest(f"{path.name} lacks files of its manifest: {missing[:5]}", param="path")
        for name in manifest.files:
            _check_digest(name, read(name, MAX_FILE_BYTES), manifest)
    if public_key is not None:
        expected = _key(public_key, "public").public_bytes_raw().hex()
        if signer != expected:
            by = "is not signed" if signer is None else f"is signed by {signer}"
            raise InvalidRequest(f"{path.name} {by}; expected a signature by {expected}", param="public_key")
    pack = Pack(path, manifest, signer)
    for packed in manifest.profiles:
        pack.profile(packed)
    return pack


def export_pack(
    client: Client,
    path: Path,
    *,
    vectors: Sequence[str] = (),
    profiles: Sequence[str] = (),
    description: str = "",
    signing_key: Path | None = None,
) -> Pack:
    """Writes vectors, the profiles named and every vector of these to a new folder, or a zip archive where the name ends in `.zip`.

    signing_key: a PEM file with an Ed25519 private key. Equal content gives equal bytes. Raises ApiError, and InvalidRequest, also for a
    vector that could not be imported again.
    """
    sign = None if signing_key is None else _signing(signing_key)
    found = [client.get_profile(name) for name in dict.fromkeys(profiles)]
    written = [*vectors, *(name for one in found for name in vector_names(one.steering))]
    if not written:
        raise InvalidRequest("name vectors or profiles with vectors: the pack would be empty", param="vectors")
    described: dict[str, VectorAnswer] = {name: client.get_vector(name) for name in dict.fromkeys(written)}
    for profile in found:
        for name in vector_names(profile.steering):
            if described[name].namespace not in (profile.namespace, SHARED):
                raise InvalidRequest(
                    f"profile {profile.name!r} of namespace {profile.namespace!r} means its own vector {name!r}, which this key does not see: it "
                    f"has one of that name in {described[name].namespace!r}; export the profile by a key of its namespace",
                    param="profiles",
                )
    loaded = client.capabilities().model
    if others := sorted({one.model for one in described.values()} - {loaded.name}):
        raise InvalidRequest(f"a pack has vectors of the loaded model, {loaded.name}; these are of {others}", param="vectors")  # fmt: skip
    packed = [_packed(one) for one in {one.id: one for one in described.values()}.values()]
    cards = {one.id: one for one in described.values()}
    digests: dict[str, str] = {}
    with _writing(path) as write:

        def add(name: str, content: bytes) -> None:
            write(name, content)
            digests[name] = hashlib.sha256(content).hexdigest()

        for one in packed:
            content = client.export_vector(one.id)
            _check_metadata(one.id, content)
            add(one.file, content)
            add(one.card, cards[one.id].model_dump_json(indent=1).encode())
        for profile in found:
            add(f"profiles/{profile.name}.json", _profile_file(profile, {n: v.id for n, v in described.items()}))
        manifest = Manifest(
            format=1,
            description=description,
            model=loaded.name,
            model_fingerprint=loaded.fingerprint,
            vectors=tuple(packed),
            profiles=tuple(PackedProfile(name=one.name, file=f"profiles/{one.name}.json") for one in found),
            files=dict(sorted(digests.items())),
        )
        text = manifest.model_dump_json(indent=1).encode()
        write(MANIFEST, text)
        if sign is not None:
            write(SIGNATURE, sign(text).model_dump_json(indent=1).encode())
    return read_pack(path)


def import_pack(client: Client, pack: Pack, *, replace: bool = False) -> dict[str, str]:
    """Stores the vectors of a pack, then its profiles, and returns the ids that the vectors have here by those in the pack.

    A vector whose digest a version of its name already has is not stored again. replace: profiles of the same names are replaced.
    Raises InvalidRequest before anything is stored where the model is another or a profile would be replaced.
    """
    manifest, loaded = pack.manifest, client.capabilities().model
    if manifest.model_fingerprint != loaded.fingerprint:
        raise InvalidRequest(
            f"the pack is for {manifest.model} ({manifest.model_fingerprint[:12]}); the server has {loaded.name} "
            f"({loaded.fingerprint[:12]})",
            param="path",
        )
    profiles = {one.name: pack.profile(one) for one in manifest.profiles}
    if not replace and (taken := [name for name in profiles if _exists(client.get_profile, name) is not None]):
        raise InvalidRequest(
            f"profiles exist: {', '.join(taken)}; they are replaced only if you say so", param="replace"
        )
    ids: dict[str, str] = {}
    for one in manifest.vectors:
        ids[one.id] = _stored(client, one) or client.import_vector(pack.read(one.file), name=one.name).id
    for name, profile in profiles.items():
        spec = SteeringSpec(interventions=profile.interventions)
        client.put_profile(name, pinned(spec, ids).interventions, description=profile.description)
    return ids


def _stored(client: Client, vector: PackedVector) -> str | None:
    """Returns the id of the newest version of the same name with the digest of a vector; None without one."""
    page = _exists(client.list_versions, vector.name)
    while page is not None:
        if same := [version.id for version in page.data if version.sha256 == vector.sha256]:
            return str(same[0])
        page = client.list_versions(vector.name, before=page.next_before) if page.next_before else None
    return None


def _packed(vector: VectorAnswer) -> PackedVector:
    stem = f"{vector.name}-{vector.version}"
    return PackedVector(
        id=vector.id, sha256=vector.sha256, file=f"vectors/{stem}.safetensors", card=f"cards/{stem}.json"
    )


def _check_metadata(vector: str, content: bytes) -> None:
    """Raises InvalidRequest for a safetensors file with more metadata than a server imports."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    size = sum(len(text.encode()) for entry in header.get("__metadata__", {}).items() for text in entry)
    if size > MAX_METADATA_BYTES:
        raise InvalidRequest(
            f"{vector} has {size} bytes of metadata, such as its card; servers import at most {MAX_METADATA_BYTES}",
            param="vectors",
        )


def _profile_file(profile: ProfileAnswer, ids: Mapping[str, str]) -> bytes:
    interventions = pinned(profile.steering, ids).interventions
    content = ProfileFile(description=profile.description, interventions=interventions)
    return content.model_dump_json(indent=1, exclude_unset=True).encode()


def _exists(call: Callable[[str], Any], name: str) -> Any:
    """Returns what a call finds; None where there is nothing of this name."""
    try:
        return call(name)
    except ApiError as error:
        if error.status != 404:
            raise
        return None


def _check_digest(name: str, content: bytes, manifest: Manifest) -> None:
    if hashlib.sha256(content).hexdigest() != manifest.files[name]:
        raise InvalidRequest(f"{name} is not the file of the manifest: its SHA-256 is another", param="file")


def _parsed(kind: Any, text: bytes, name: str) -> Any:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:80]
        raise InvalidRequest(f"{name}: {place}: {first['msg'][:200]}", param="file") from None


@contextmanager
def _reading(path: Path) -> Iterator[tuple[set[str], Callable[[str, int], bytes]]]:
    """Yields the names of the files of a pack, and what reads one of at most so many bytes."""
    with ExitStack() as stack:
        if path.is_dir():
            entries = list(path.rglob("*"))
            if any(one.is_symlink() for one in entries):
                raise InvalidRequest(f"{path.name} has symbolic links; a pack has none", param="path")
            names = {one.relative_to(path).as_posix() for one in entries if one.is_file()}

            def opened(name: str) -> Any:
                return (path / name).open("rb")

        else:
            try:
                archive = stack.enter_context(ZipFile(path))
            except BadZipFile:
                raise InvalidRequest(f"{path.name} is neither a folder nor a zip archive", param="path") from None
            listed = [one.filename for one in archive.infolist() if not one.is_dir()]
            if len(listed) != len(set(listed)):
                raise InvalidRequest(f"{path.name} has two files of one name", param="path")
            names, opened = set(listed), archive.open

        def read(name: str, limit: int) -> bytes:
            try:
                with opened(name) as file:
                    content: bytes = file.read(limit + 1)
            except (BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:  # damaged, or encrypted
                raise InvalidRequest(f"{name} cannot be read: {error}", param="file") from None
            if len(content) > limit:
                raise InvalidRequest(f"{name} has more than {limit} bytes", param="file")
            return content

        yield names, read


@contextmanager
def _writing(path: Path) -> Iterator[Write]:
    """Yields what adds a file to a new pack, which is removed where something fails. Raises FileExistsError."""
    archive = ZipFile(path, "x") if path.suffix == ".zip" else None
    if archive is None:
        path.mkdir()

    def write(name: str, content: bytes) -> None:
        if archive is not None:
            archive.writestr(ZipInfo(name), content)  # without a time: equal packs are equal files
            return
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(content)

    try:
        yield write
        if archive is not None:
            archive.close()
    except BaseException:
        if archive is not None:
            archive.close()
            path.unlink()
        else:
            shutil.rmtree(path)
        raise


def _signing(file: Path) -> Callable[[bytes], Signature]:
    """Returns what signs. Raises InvalidRequest for a file that is not an Ed25519 private key in PEM, without a password."""
    key = _key(file, "private")
    public = key.public_key().public_bytes_raw().hex()
    return lambda content: Signature(algorithm="ed25519", public_key=public, signature=key.sign(content).hex())


def _signer(content: bytes, signature: Signature) -> str:
    """Returns the public key of a signature that fits the content. Raises InvalidRequest."""
    ed25519, _ = _cryptography()
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - an extra

    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature.public_key))
        key.verify(bytes.fromhex(signature.signature), content)
    except (InvalidSignature, ValueError):
        raise InvalidRequest(f"{SIGNATURE} does not fit {MANIFEST}: the signature is not valid", param="file") from None
    return signature.public_key


def _key(file: Path, kind: Literal["private", "public"]) -> Any:
    """Reads a key in PEM. Raises InvalidRequest for another kind of key, or one with a password."""
    ed25519, serialization = _cryptography()
    param, content = "key" if kind == "private" else "public_key", file.read_bytes()
    try:
        if kind == "private":
            key, expected = serialization.load_pem_private_key(content, password=None), ed25519.Ed25519PrivateKey
        else:
            key, expected = serialization.load_pem_public_key(content), ed25519.Ed25519PublicKey
    except (ValueError, TypeError) as error:
        raise InvalidRequest(f"{file.name} is not a {kind} key in PEM without a password: {error}", param=param) from None  # fmt: skip
    if not isinstance(key, expected):
        raise InvalidRequest(f"{file.name} is a key of another kind; expected Ed25519", param=param)
    return key


def _cryptography() -> Any:
    """Returns the modules `ed25519` and `serialization`. Raises InvalidRequest where the package is missing."""
    try:
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - an extra
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415
    except ImportError:
        raise InvalidRequest("signatures need the package cryptography: pip install 'cryptography>=45'") from None
    return ed25519, serialization

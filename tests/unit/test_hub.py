"""The adapter to Hugging Face's client: what it asks of it, and what it makes of its errors."""

import errno
from types import SimpleNamespace

import pytest

from runtime.hub import HubError, HuggingFace, Listing, RemoteFile, check_file, discard
from tests.fake_hub import commit

client = pytest.importorskip("huggingface_hub")
errors = pytest.importorskip("huggingface_hub.errors")

COMMIT = commit("x")
SHA256 = "ab" * 32


def sibling(name, size, blob, sha256=None):
    lfs = SimpleNamespace(sha256=sha256) if sha256 else None
    return SimpleNamespace(rfilename=name, size=size, blob_id=blob, lfs=lfs)


def test_a_branch_is_resolved_to_its_commit_with_every_size_and_digest(monkeypatch):
    asked = {}

    class Api:
        def model_info(self, repo, **options):
            asked.update(options, repo=repo)
            files = [
                sibling("a.safetensors", 9, "11" * 20, SHA256),
                sibling("b.json", 3, "22" * 20),
            ]
            return SimpleNamespace(sha=COMMIT, siblings=files)

    monkeypatch.setattr(client, "HfApi", Api)
    listing = HuggingFace().resolve("o/n", "")
    assert asked == {"repo": "o/n", "revision": None, "files_metadata": True}
    assert listing == Listing(
        COMMIT, {"a.safetensors": RemoteFile(9, SHA256), "b.json": RemoteFile(3, "22" * 20)}
    )


def test_a_download_names_a_commit_and_never_a_branch(monkeypatch, tmp_path):
    asked = []

    def download(repo, path, **options):
        asked.append((repo, path, options))
        return str(tmp_path / path)

    monkeypatch.setattr(client, "hf_hub_download", download)
    hub = HuggingFace()
    assert hub.download("o/n", "a/b.pt", COMMIT) == tmp_path / "a/b.pt"
    assert asked == [("o/n", "a/b.pt", {"revision": COMMIT})]
    for branch in ("main", "", COMMIT[:12]):
        with pytest.raises(ValueError, match="a branch can move"):
            hub.download("o/n", "a/b.pt", branch)
    assert len(asked) == 1


def test_a_file_of_the_cache_is_held_and_one_that_is_known_to_be_absent_is_not(monkeypatch):
    found = {"here": "/x/here", "absent": object()}
    monkeypatch.setattr(
        client, "try_to_load_from_cache", lambda repo, path, revision: found.get(path)
    )
    hub = HuggingFace()
    assert str(hub.held("o/n", "here", COMMIT)) == "/x/here"
    assert hub.held("o/n", "absent", COMMIT) is None and hub.held("o/n", "else", COMMIT) is None


def http(kind: str, status: int, base: str = "HfHubHTTPError") -> Exception:
    """An error of the client's, made without the response that its constructor wants."""
    error = getattr(errors, kind, None) or getattr(errors, base)
    made = error.__new__(error)
    Exception.__init__(made, f"{status} for url")
    made.response = SimpleNamespace(status_code=status)
    return made


def hidden(kind: str, cause: BaseException) -> Exception:
    """What the client raises when a request failed and the cache has nothing either."""
    error = errors.LocalEntryNotFoundError(kind)
    error.__cause__ = cause
    return error


def offline() -> Exception:
    return errors.OfflineModeIsEnabled("offline mode is enabled")


def foreign(module: str) -> Exception:
    return type("ConnectError", (Exception,), {"__module__": module})("no route")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (offline(), "offline"),
        (hidden("not in the cache", ConnectionError("no route")), "offline"),
        (hidden("not in the cache", OSError(errno.ENOSPC, "full")), "full"),
        (hidden("not in the cache", http("GatedRepoError", 403)), "gated"),
        (foreign("httpx"), "offline"),
        (foreign("httpx2._exceptions"), "offline"),
        (foreign("requests.exceptions"), "offline"),
        (TimeoutError("slow"), "offline"),
        (OSError(errno.ENOSPC, "No space left on device"), "full"),
        (http("GatedRepoError", 403), "gated"),
        (http("HfHubHTTPError", 401), "gated"),
        (http("HfHubHTTPError", 403), "gated"),
        (http("RepositoryNotFoundError", 401), "missing"),
        (http("RevisionNotFoundError", 404), "missing"),
        (http("RemoteEntryNotFoundError", 404, "EntryNotFoundError"), "missing"),
        (http("HfHubHTTPError", 404), "missing"),
        (http("HfHubHTTPError", 500), "broken"),
        (RuntimeError("what"), "broken"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_an_error_of_the_client_becomes_one_of_five(monkeypatch, error, kind):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(client, "hf_hub_download", fail)
    with pytest.raises(HubError) as raised:
        HuggingFace().download("o/n", "a.pt", COMMIT)
    assert raised.value.kind == kind and raised.value.repo == "o/n"
    assert str(raised.value).startswith("o/n/a.pt: ") and "\n" not in str(raised.value)


def test_the_offline_switch_of_the_client_is_kept_to(monkeypatch, tmp_path):
    monkeypatch.setattr(client.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(client.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubError) as raised:
        HuggingFace().resolve("o/n", COMMIT)
    assert raised.value.kind == "offline"
    assert HuggingFace().folder == tmp_path


@pytest.mark.parametrize(
    ("content", "digest"),
    [
        (b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a"),  # git hash-object
        (b"hello\n", "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"),  # sha256sum
        (b"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
    ],
)  # fmt: skip
def test_a_file_is_checked_by_either_digest(tmp_path, content, digest):
    path = tmp_path / "file"
    path.write_bytes(content)
    check_file(path, RemoteFile(len(content), digest))
    path.write_bytes(content + b"x")
    with pytest.raises(ValueError, match=f"want {len(content)} bytes, got {len(content) + 1}"):
        check_file(path, RemoteFile(len(content), digest))
    path.write_bytes(b"j" * len(content) + b"")
    if content:
        with pytest.raises(ValueError, match=f"want .* {digest}, got "):
            check_file(path, RemoteFile(len(content), digest))


def test_a_discarded_link_takes_what_it_points_at_with_it(tmp_path):
    blob = tmp_path / "blob"
    blob.write_bytes(b"x")
    link = tmp_path / "link"
    link.symlink_to(blob)
    discard(link)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("size", "digest"), [(-1, SHA256), (True, SHA256), (1.0, SHA256), (1, "xy" * 20), (1, "ab"), (1, None)]
)  # fmt: skip
def test_facts_that_cannot_be_are_refused(size, digest):
    with pytest.raises(ValueError, match=r"bytes: want|digest: want"):
        RemoteFile(size, digest)

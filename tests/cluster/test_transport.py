"""What pods are given and give back: rclone itself against an S3 server that can be cut off."""

import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from greengrader.errors import SettingsError
from greengrader.kube.transport import FILES, RESULTS, Remote, StorageUnavailable, prefix_of, remote_path
from tests.cluster.services import BUCKET, S3

MEBIBYTE = 1024 * 1024
FIRST, SECOND = prefix_of(7, 1), prefix_of(7, 2)


@pytest.fixture
def remote(s3: S3) -> Iterator[Remote]:
    """The bucket as hub and pods know it, empty before and after."""
    remote = Remote(config=s3.rclone_config, timeout_s=60)
    yield remote
    for prefix in remote.prefixes():
        remote.purge(prefix)


def objects(s3: S3) -> list[str]:
    return sorted(s3.rclone("lsf", "--recursive", "--files-only", "greengrader-app:").decode().split())


def test_what_is_put_is_got(remote: Remote, s3: S3) -> None:
    remote.put(FIRST, FILES, b"one\0\xff")
    assert remote.get(FIRST, FILES, 100) == b"one\0\xff"
    assert objects(s3) == ["runs/7-1/files.tar.gz"]


def test_a_second_put_replaces_the_first(remote: Remote) -> None:
    remote.put(FIRST, FILES, b"a long first content")
    remote.put(FIRST, FILES, b"second")
    assert remote.get(FIRST, FILES, 100) == b"second"


def test_what_is_not_there_is_none(remote: Remote) -> None:
    remote.put(FIRST, FILES, b"one")
    assert remote.get(FIRST, RESULTS, 100) is None
    assert remote.get(SECOND, FILES, 100) is None


def test_no_more_is_got_than_asked_for(remote: Remote) -> None:
    remote.put(FIRST, RESULTS, b"0123456789")
    assert remote.get(FIRST, RESULTS, 4) == b"0123"


def test_a_large_file_goes_in_one_piece(remote: Remote, s3: S3) -> None:
    content = os.urandom(MEBIBYTE) * 30
    remote.put(FIRST, FILES, content)
    assert remote.get(FIRST, FILES, len(content)) == content
    assert objects(s3) == ["runs/7-1/files.tar.gz"]


def test_purge_removes_one_prefix_and_nothing_else(remote: Remote, s3: S3) -> None:
    for prefix in (FIRST, SECOND, prefix_of(7, 11), prefix_of(71, 1)):
        remote.put(prefix, FILES, b"files")
        remote.put(prefix, RESULTS, b"results")
    remote.purge(FIRST)
    remote.purge(SECOND)
    assert {name.rpartition("/")[0] for name in objects(s3)} == {"runs/7-11", "runs/71-1"}


def test_purging_nothing_is_no_fault(remote: Remote) -> None:
    remote.purge(prefix_of(999, 1))


def test_prefixes_are_those_of_runs_alone(remote: Remote, s3: S3) -> None:
    assert remote.prefixes() == set()
    remote.put(FIRST, FILES, b"files")
    remote.put(prefix_of(12, 3), RESULTS, b"results")
    s3.rclone("rcat", "greengrader-app:runs/backup/notes.txt", stdin=b"not ours")
    s3.rclone("rcat", "greengrader-app:elsewhere/5-1/notes.txt", stdin=b"not ours")
    assert remote.prefixes() == {"runs/7-1", "runs/12-3"}


def test_a_remote_may_hold_a_path(s3: S3) -> None:
    deep = Remote(f"s3:{BUCKET}/shared/greengrader", s3.rclone_config)
    deep.put(FIRST, FILES, b"files")
    assert "shared/greengrader/runs/7-1/files.tar.gz" in objects(s3)
    assert deep.prefixes() == {FIRST}
    deep.purge(FIRST)
    assert deep.prefixes() == set()


def test_any_remote_will_do(s3: S3, tmp_path: Path) -> None:
    config = tmp_path / "rclone.conf"
    config.write_text(f"[greengrader-app]\ntype = alias\nremote = {tmp_path}/storage\n")
    local = Remote(config=config)
    assert local.prefixes() == set() and local.get(FIRST, FILES, 10) is None
    local.purge(FIRST)
    local.put(FIRST, FILES, b"files")
    assert (tmp_path / "storage" / "runs" / "7-1" / FILES).read_bytes() == b"files"
    assert local.get(FIRST, RESULTS, 10) is None
    assert local.prefixes() == {FIRST}
    local.purge(FIRST)
    assert local.prefixes() == set()


def test_many_at_once_do_not_mix(remote: Remote) -> None:
    def there_and_back(run_id: int) -> bool:
        content = str(run_id).encode() * 1000
        remote.put(prefix_of(run_id, 1), FILES, content)
        return remote.get(prefix_of(run_id, 1), FILES, MEBIBYTE) == content

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(there_and_back, range(1, 25)))
    assert len(remote.prefixes()) == 24


def test_a_storage_that_is_away_is_one_clear_line(remote: Remote, s3: S3) -> None:
    remote.put(FIRST, FILES, b"files")
    with s3.away():
        for what, call in (
            (f"store {FIRST}/{RESULTS}", lambda: remote.put(FIRST, RESULTS, b"x")),
            (f"fetch {FIRST}/{FILES}", lambda: remote.get(FIRST, FILES, 10)),
            (f"remove {FIRST}", lambda: remote.purge(FIRST)),
            ("list runs", remote.prefixes),
        ):
            with pytest.raises(StorageUnavailable) as said:
                call()
            text = str(said.value)
            assert text.startswith(f"greengrader-app: did not {what}: "), text
            assert "\n" not in text and len(text) < 500
    assert remote.get(FIRST, FILES, 10) == b"files"


def test_a_storage_that_hangs_is_given_up(s3: S3) -> None:
    s3.relay.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(StorageUnavailable, match=r"did not store runs/7-1/files\.tar\.gz within 2 s"):
            Remote(config=s3.rclone_config, timeout_s=2).put(FIRST, FILES, b"files")
        assert time.monotonic() - began < 10
    finally:
        s3.relay.freeze(False)
        s3.relay.cut()


def test_a_bucket_that_is_not_there_is_nothing_to_get_and_nowhere_to_put(s3: S3, tmp_path: Path) -> None:
    config = tmp_path / "rclone.conf"
    config.write_text(s3.rclone_config.read_text() + "no_check_bucket = true\n")
    nowhere = Remote("s3:no-such-bucket", config)
    assert nowhere.get(FIRST, FILES, 10) is None
    with pytest.raises(StorageUnavailable, match="NoSuchBucket"):
        nowhere.put(FIRST, FILES, b"files")


def test_a_remote_that_is_not_configured_is_a_fault_of_the_settings(s3: S3) -> None:
    with pytest.raises(SettingsError, match=rf"configuration {s3.rclone_config} has no remote elsewhere:$"):
        Remote("elsewhere:bucket", s3.rclone_config).put(FIRST, FILES, b"files")


def test_without_rclone_the_settings_are_at_fault(
    remote: Remote, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("PATH", str(tmp_path))
        with pytest.raises(SettingsError, match="rclone is not installed here"):
            remote.get(FIRST, FILES, 10)


def test_an_aws_bundle_in_the_environment_does_no_harm(remote: Remote, monkeypatch: pytest.MonkeyPatch, s3: S3) -> None:
    bundle = "/etc/ssl/certs/ca-certificates.crt"
    monkeypatch.setenv("AWS_CA_BUNDLE", bundle)
    command = ["rclone", f"--config={s3.rclone_config}", "lsf", "greengrader-app:"]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0, "rclone has learnt it"
    remote.put(FIRST, FILES, b"files")
    assert remote.get(FIRST, FILES, 10) == b"files"


@pytest.mark.parametrize(
    ("remote_name", "path"),
    [
        ("greengrader-app:", "greengrader-app:runs/7-1"),
        ("s3:bucket", "s3:bucket/runs/7-1"),
        ("s3:bucket/", "s3:bucket/runs/7-1"),
    ],
)
def test_paths_below_a_remote(remote_name: str, path: str) -> None:
    assert remote_path(remote_name, prefix_of(7, 1)) == path

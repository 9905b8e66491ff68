"""Files that appear whole or not at all, and whose damage is found on reading."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from edf_jax.runtime import locks, storage
from edf_jax.runtime.errors import UserError
from tests.damage import DAMAGES, damage


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {"a": rng.standard_normal(50).astype(np.float32), "b": np.arange(6).reshape(2, 3)}


def test_arrays_come_back_with_their_details(tmp_path, arrays):
    storage.save_arrays(tmp_path / "c", arrays, {"accuracy": 0.5})
    read = storage.load_arrays(tmp_path / "c")
    assert set(read) == {"a", "b"}
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
    assert set(storage.load_arrays(tmp_path / "c", ["b"])) == {"b"}
    assert storage.load_details(tmp_path / "c") == {"accuracy": 0.5}


def test_a_checkpoint_replaces_the_one_before(tmp_path, arrays):
    storage.save_arrays(tmp_path / "c", arrays)
    storage.save_arrays(tmp_path / "c", {"a": np.ones(2, np.float32)})
    np.testing.assert_array_equal(storage.load_arrays(tmp_path / "c")["a"], np.ones(2))
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_damage_to_any_file_of_a_checkpoint_goes_unseen(tmp_path, arrays):
    storage.save_arrays(tmp_path / "c", arrays, {"accuracy": 0.5})
    rng = np.random.default_rng(0)
    seen = 0
    for file in sorted(p for p in (tmp_path / "c").rglob("*") if p.is_file()):
        whole = file.read_bytes()
        for how in DAMAGES:
            for _ in range(4 if how == "flip" else 1):
                damage(file, how, rng)
                try:
                    read, details = storage.load_arrays(tmp_path / "c"), None
                    details = storage.load_details(tmp_path / "c")
                    assert details == {"accuracy": 0.5}
                    for name, array in arrays.items():
                        np.testing.assert_array_equal(read[name], array)
                except storage.DamagedFile as error:
                    assert str(tmp_path / "c") in str(error) and "\n" not in str(error)
                    seen += 1
                file.write_bytes(whole)
    assert seen > 10


def test_every_flipped_byte_of_a_record_is_found(tmp_path):
    path = tmp_path / "r.json"
    record = {"seconds": {"experts": 1.5}, "names": ["a", "b"]}
    storage.write_record(path, record)
    whole = path.read_bytes()
    assert storage.read_record(path) == record
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x11]) + whole[at + 1 :])
        try:
            assert storage.read_record(path) == record
        except storage.DamagedFile:
            pass


def test_every_flipped_byte_of_a_tensor_file_is_found(tmp_path):
    path = tmp_path / "t.safetensors"
    tensors = {"x": np.arange(6, dtype=np.float32), "rate": np.float32(0.5)}
    storage.save_tensors(path, tensors, {"format": "a kind", "step": "3"})
    whole = path.read_bytes()
    read, metadata = storage.load_tensors(path, "a kind")
    assert read["rate"].shape == () and metadata["step"] == "3"
    for at in range(0, len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x04]) + whole[at + 1 :])
        with pytest.raises(UserError):
            storage.load_tensors(path, "a kind")


def test_another_kind_of_tensor_file_is_named(tmp_path):
    path = tmp_path / "t.safetensors"
    storage.save_tensors(path, {"x": np.zeros(2)}, {"format": "maps 1"})
    with pytest.raises(UserError, match="no distilled set"):
        storage.load_tensors(path, "distilled set")


def test_a_failed_write_leaves_what_was_there(tmp_path, arrays, monkeypatch):
    storage.save_arrays(tmp_path / "c", arrays)
    storage.write_text(tmp_path / "t", "before")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(storage.WriteFailed, match="c can't be written: no space left on device;"):
        storage.save_arrays(tmp_path / "c", {"a": np.zeros(3)})
    with pytest.raises(storage.WriteFailed, match="no space left on device"):
        storage.write_text(tmp_path / "t", "after")
    with pytest.raises(storage.WriteFailed):
        storage.save_tensors(tmp_path / "s.safetensors", {"x": np.zeros(2)}, {})
    monkeypatch.undo()
    np.testing.assert_array_equal(storage.load_arrays(tmp_path / "c")["a"], arrays["a"])
    assert (tmp_path / "t").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "t"]


_TOO_LARGE = """
import logging, pathlib, sys
import numpy as np
from edf_jax.runtime import console, storage
console.speak_in_lines()
path = pathlib.Path(sys.argv[1]) / "c"
arrays = {f"a{i}": np.random.default_rng(i).standard_normal(200_000) for i in range(3)}
sys.exit(console.exit_status(lambda: storage.save_arrays(path, arrays)))
"""


def test_a_disk_that_takes_no_more_is_told_in_one_line(tmp_path):
    limited = 'ulimit -f 200; exec "$@"'  # in KiB
    ended = subprocess.run(
        ["bash", "-c", limited, "-", sys.executable, "-c", _TOO_LARGE, str(tmp_path)],
        capture_output=True, text=True, timeout=120,
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1
    assert ended.stderr.startswith(f"edf_jax: {tmp_path / 'c'} can't be written: file too large")
    assert list(tmp_path.iterdir()) == []


class _Killed(BaseException):
    pass


def test_leftovers_of_a_kill_are_removed_and_nothing_else(tmp_path, monkeypatch):
    for name in (".thesis.tmp", "results.tmp", ".mail.old", "kept.json"):
        (tmp_path / name).write_text("{}")
    others = sorted(path.name for path in tmp_path.iterdir())
    storage.save_arrays(tmp_path / "c", {"a": np.zeros(3)})

    def die(*_, **__):
        raise _Killed

    # What a kill leaves: neither renamed nor taken away.
    monkeypatch.setattr(storage, "_delete", die)
    with pytest.raises(_Killed):
        storage.remove(tmp_path / "c")
    with pytest.raises(_Killed):
        with storage.appearing(tmp_path / "d") as temporary:
            temporary.mkdir()
            raise _Killed
    monkeypatch.undo()
    left = [path for path in tmp_path.iterdir() if path.name not in others]
    assert len(left) == 2 and all(map(storage.is_passing, left))
    storage.remove_leftovers(tmp_path, of="c")
    storage.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == others


def test_what_is_of_another_place_is_damaged_and_what_tells_no_place_is_read(tmp_path, arrays):
    place = {"epoch": 3, "settings": "a"}
    storage.save_arrays(tmp_path / "c", arrays, {"accuracy": 0.5}, place)
    assert set(storage.load_arrays(tmp_path / "c", place=place)) == set(arrays)
    for other in ({**place, "epoch": 2}, {**place, "settings": "b"}):
        with pytest.raises(storage.DamagedFile, match="c was put there from elsewhere"):
            storage.load_details(tmp_path / "c", other)
        with pytest.raises(storage.DamagedFile, match="c was put there from elsewhere"):
            storage.load_arrays(tmp_path / "c", [], other)
    storage.save_arrays(tmp_path / "old", arrays)
    assert set(storage.load_arrays(tmp_path / "old", place=place)) == set(arrays)


def test_files_get_the_rights_that_the_umask_gives(tmp_path, arrays):
    before = os.umask(0o027)
    try:
        storage.write_text(tmp_path / "t", "text")
        storage.save_tensors(tmp_path / "s.safetensors", arrays, {"format": "a kind"})
        storage.save_arrays(tmp_path / "c", arrays)
    finally:
        os.umask(before)
    rights = {path: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert len(rights) > 8
    for path, found in rights.items():
        assert found == (0o750 if path.is_dir() else 0o640), path


def test_a_second_process_is_kept_out_until_the_first_ends(tmp_path):
    with locks.locked(tmp_path / "f", "busy"):
        with pytest.raises(locks.Busy, match="busy"):
            with locks.locked(tmp_path / "f", "busy"):
                pass
    with locks.locked(tmp_path / "f", "busy"):
        pass


def test_a_record_that_is_no_record_is_damaged(tmp_path):
    path = tmp_path / "r.json"
    for content in ("", "3", "[]", "null", '{"a": 1}', json.dumps({"a": 1, "digest": "0"})):
        path.write_text(content)
        with pytest.raises(storage.DamagedFile, match="r.json"):
            storage.read_record(path)

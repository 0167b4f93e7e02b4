"""Files are whole or not there."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest

from femur_tf import files
from femur_tf.errors import DataError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def test_a_block_that_ends_well_gives_the_file(tmp_path):
    path = tmp_path / "new" / "mask.nii.gz"
    with files.whole(path) as temporary:
        assert temporary.parent == path.parent  # the same disk, so that the rename is one step
        assert temporary.name.endswith("mask.nii.gz")  # writers choose the format by the suffixes
        temporary.write_bytes(b"mask")
        assert not path.exists()
    assert path.read_bytes() == b"mask"
    assert list(path.parent.iterdir()) == [path]


def test_a_block_that_raises_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted():
        with files.whole(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "version"
    for name in ("old", "new"):
        with files.whole(path) as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
    assert [child.name for child in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    script = (
        "import os, pathlib, signal, sys\n"
        "from femur_tf import files\n"
        "with files.whole(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{script}", str(path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert path.read_text(encoding="utf-8") == "old"


def test_sha256_of_abc(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    # The example of FIPS 180-2, appendix B.1.
    assert files.sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_remove_takes_files_folders_and_nothing(tmp_path):
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_text("x")
    link = tmp_path / "link"
    link.symlink_to(folder)
    files.remove(link)
    assert folder.is_dir()  # only the link went
    files.remove(folder / "inner" / "file")
    files.remove(folder)
    files.remove(folder)
    assert list(tmp_path.iterdir()) == []


@hypothesis.given(values=JSON)
def test_json_comes_back_as_it_was(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("json") / "values.json"
    files.write_json(path, values)
    assert files.read_json(path) == values


def test_json_is_for_people_too(tmp_path):
    files.write_json(tmp_path / "a.json", {"a": 1})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "a": 1\n}\n'


@pytest.mark.parametrize("text", ["", "{", '{"a": 1', "nonsense"])
def test_a_file_that_is_not_json_is_named(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"plan\.json: expected JSON\. Received: ") as caught:
        files.read_json(path)
    assert isinstance(caught.value.__cause__, json.JSONDecodeError)


def test_a_mark_at_the_start_of_a_file_is_no_part_of_it(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}', encoding="utf-8-sig")
    assert files.read_json(path) == {"a": 1}


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"plan\.json"):
        files.read_json(tmp_path / "plan.json")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_exists_is_refused_without_overwrite(tmp_path, kind):
    path = tmp_path / "result"
    files.refuse_existing(path, overwrite=False)
    path.mkdir() if kind == "folder" else path.write_text("")
    files.refuse_existing(path, overwrite=True)
    with pytest.raises(DataError, match=r"result: already exists.*--overwrite"):
        files.refuse_existing(path, overwrite=False)


def test_text_is_utf8_in_any_locale(tmp_path):
    code = "import pathlib, sys; from femur_tf import files; path = pathlib.Path(sys.argv[1]); "
    code += 'files.write_json(path, {}); files.write_text(path, \'{"site": "K\\u00f6ln"}\'); '
    code += "sys.exit(files.read_json(path) != {'site': 'K\\u00f6ln'})"
    path = tmp_path / "note.json"
    plain = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=plain, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == '{"site": "K\u00f6ln"}'.encode()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "/a", "a/"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    assert files.child(tmp_path, "a b.ü") == tmp_path / "a b.ü"
    with pytest.raises(DataError, match="expected the name of a folder in it"):
        files.child(tmp_path, name)


def test_a_place_for_a_file_has_a_folder_above_it(tmp_path):
    files.require_place(tmp_path / "new" / "folder" / "a.json")
    (tmp_path / "file").write_text("")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="gone, a file"):
        files.require_place(tmp_path / "gone" / "a.json")
    with pytest.raises(DataError, match="a folder"):
        files.require_place(Path("/"))
    for path, words in ((tmp_path, "a folder"), (tmp_path / "file" / "a.json", "file, a file")):
        with pytest.raises(DataError, match=rf"expected a place for a file\. Received: .*{words}"):
            files.require_place(path)


def test_what_a_folder_holds_is_removed_and_a_link_to_it_stays(tmp_path):
    real, link = tmp_path / "disk", tmp_path / "records"
    (real / "shards").mkdir(parents=True)
    (real / "shards" / "a").write_text("a")
    link.symlink_to(real)
    files.clear(link)
    assert link.is_symlink() and list(real.iterdir()) == []
    files.clear(tmp_path / "none")


def test_two_processes_in_one_folder_are_refused(tmp_path):
    folder = tmp_path / "tuning" / "x"
    with (
        files.locked(folder, "Wait."),
        pytest.raises(DataError, match=r"x: another process is working here\. Wait\."),
        files.locked(folder, "Wait."),
    ):
        pass
    with files.locked(folder, ""):
        pass


def test_a_lock_that_another_user_left_is_taken(tmp_path):
    (tmp_path / ".report.lock").touch(mode=0o444)
    with files.locked(tmp_path / "report", ""):
        assert (tmp_path / ".report.lock").stat().st_mode & 0o777 == 0o444


def test_a_lock_ends_with_its_process(tmp_path):
    folder = tmp_path / "tuning" / "x"
    line = (
        "import os, pathlib, sys; from femur_tf import files\n"
        "with files.locked(pathlib.Path(sys.argv[1]), ''): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", line, str(folder)], check=False).returncode == -9
    with files.locked(folder, ""):
        pass


def test_what_is_renamed_is_on_the_disk_before(tmp_path, monkeypatch):
    """A power cut would leave an empty file of the final name."""
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda place: done.append(os.readlink(f"/proc/self/fd/{place}")) or fsync(place))
    monkeypatch.setattr(os, "replace", lambda one, other: done.append("renamed") or replace(one, other))
    with files.whole(tmp_path / "run") as temporary:
        temporary.mkdir()
        (temporary / "a").write_text("a")
    names = [Path(name).name.partition("-run")[0] for name in done]
    assert names == ["a", names[1], "renamed", tmp_path.name]
    assert names[1].startswith(".partial-")


def test_what_cannot_be_brought_to_the_disk_is_written_all_the_same(tmp_path, monkeypatch):
    def refused(place):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refused)
    files.write_text(tmp_path / "a", "a")
    assert (tmp_path / "a").read_text() == "a"


def test_what_killed_commands_have_left_is_removed_after_a_day(tmp_path):
    names = (".partial-00000000-a.json", ".partial-00000001-a.json", ".partial-00000002-b.json")
    for name in names:
        (tmp_path / name).write_text("half")
    for name in names[::2]:
        os.utime(tmp_path / name, (0, time.time() - files.LEFT_OVER_S - 10))
    files.write_text(tmp_path / "a.json", "{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == [names[1], "a.json"]


@pytest.mark.parametrize("number", [errno.EBADF, errno.ENOLCK, errno.ENOSYS])
def test_where_no_file_can_be_locked_a_command_runs_and_says_so(tmp_path, monkeypatch, caplog, number):
    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    with files.locked(tmp_path / "work", "Wait."):
        pass
    assert f"work: expected a file system that can lock files. Received: {os.strerror(number)}." in caplog.text


def test_another_error_of_a_lock_is_one(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(OSError, match="Input/output"), files.locked(tmp_path / "work", "Wait."):
        pass


def test_a_folder_that_may_not_be_written_to_is_no_place_for_a_lock(tmp_path, monkeypatch):
    def refused(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(PermissionError, match="Permission denied"), files.locked(tmp_path / "run", "Wait."):
        pass


def test_what_may_not_be_removed_is_named_with_its_place(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied", "state.json")

    monkeypatch.setattr(shutil, "rmtree", refused)
    with pytest.raises(PermissionError, match=str(tmp_path)):
        files.remove(tmp_path)

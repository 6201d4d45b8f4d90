"""What is kept between runs: whole entries or none, within a limit, made once among processes."""

import contextlib
import hashlib
import os
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lillama.core.cache
from lillama.core.cache import KINDS, clear, default_root, entries, store
from lillama.core.cache.__main__ import main
from lillama.core.cache.entries import remove
from lillama.core.cache.folders import MARK, SUFFIXES
from lillama.core.cache.seal import seal
from lillama.core.errors import ConfigError
from tests.conftest import composed, fingerprint

MODEL = "0f" * 16
OF_A, OF_B, OF_F = "a" * 32, "b" * 32, "f" * 32


class Cache(lillama.core.cache.Cache):
    """A cache whose keys of files are one digit here, for 32 of them."""

    def read(self, kind, key, load):
        return super().read(kind, key * 32, load)

    def write(self, kind, key, content):
        super().write(kind, key * 32, content)


def content(file):
    return file.read_bytes()


def imported(cache, weights=b"weights", key=MODEL):
    return cache.write_folder("gguf", key, lambda folder: (folder / "weights").write_bytes(weights))


def keys(cache, kind="factors"):
    return {
        entry.path.name.partition(".")[0] if kind == "gguf" else entry.path.name[0]
        for entry in entries(cache.root, [kind])
    }


def age(cache, key, days):
    for kind in KINDS:
        for file in (cache.root / kind).glob(f"{key}*"):
            os.utime(file, (time.time() - days * 86400,) * 2)


def test_what_was_written_is_read_and_nothing_else(tmp_path):
    cache = Cache(tmp_path / "none" / "yet")
    assert cache.read("factors", "a", content) is None
    cache.write("factors", "a", b"first")
    assert cache.read("factors", "a", content) == b"first"
    assert cache.read("tokens", "a", content) is None
    assert cache.read("factors", "b", content) is None
    cache.write("factors", "a", b"second")
    assert Cache(cache.root).read("factors", "a", content) == b"second"
    assert len(entries(cache.root)) == 1


@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b"", lambda b: b[:2] + b"\xff" + b[3:]])
def test_a_damaged_entry_is_dropped_with_a_warning(tmp_path, caplog, damage):
    cache = Cache(tmp_path)
    cache.write("factors", "a", b"content")
    (entry,) = entries(tmp_path)
    entry.path.write_bytes(damage(b"content"))
    assert cache.read("factors", "a", content) is None
    assert "damaged" in caplog.text
    assert not entries(tmp_path)


def test_the_least_recently_used_go_first_and_the_limit_is_kept(tmp_path):
    Cache(tmp_path).write("tokens", "f", bytes(100))
    old = Cache(tmp_path, limit=350)
    old.write("factors", "a", bytes(100))
    old.write("factors", "b", bytes(100))
    for key, days in (("f", 3), ("a", 2), ("b", 1)):
        age(old, key, days)
    cache = Cache(tmp_path, limit=350)
    assert cache.read("tokens", "f", content) is not None, "used now"
    cache.write("factors", "c", bytes(100))
    assert keys(cache) == {"b", "c"}
    assert keys(cache, "tokens") == {"f"}
    assert sum(entry.size for entry in entries(tmp_path)) <= 350


def test_an_imported_model_is_neither_counted_nor_evicted(tmp_path):
    cache = Cache(tmp_path, limit=100)
    imported(cache, bytes(1000))
    cache.write("factors", "a", bytes(100))
    assert keys(cache) == {"a"}
    assert keys(cache, "gguf") == {MODEL}


def test_what_this_run_uses_stays_and_then_no_more_is_kept(tmp_path, caplog):
    cache = Cache(tmp_path, limit=250)
    for key in "abcd":
        cache.write("factors", key, bytes(100))
    assert keys(cache) == {"a", "b"}
    assert caplog.text.count("cache_limit_gb") == 1
    Cache(tmp_path, limit=250).write("factors", "e", bytes(100))
    assert len(keys(cache)) == 2
    assert "e" in keys(cache)


def test_folders_are_counted_again_after_a_hundredth_of_the_limit(tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr(store, "entries", lambda *args: counted.append(args) or entries(*args))
    cache = Cache(tmp_path, limit=10_000)
    for number in range(25):
        cache.write("factors", str(number), bytes(10))
    assert len(counted) == 3
    Cache(tmp_path).write("factors", "another", bytes(9_900))
    for number in range(25, 40):
        cache.write("factors", str(number), bytes(10))
    assert sum(entry.size for entry in entries(tmp_path)) <= 10_100, "others write too: within a hundredth for each"


def test_an_entry_larger_than_the_limit_is_not_kept_and_that_is_said_once(tmp_path, caplog):
    cache = Cache(tmp_path, limit=50)
    cache.write("factors", "5", bytes(20))
    for key in "ab":
        cache.write("factors", key, bytes(60))
    assert keys(cache) == {"5"}
    assert caplog.text.count("larger than cache_limit_gb") == 1


def test_a_full_disk_is_told_once_and_leaves_nothing_behind(tmp_path, caplog, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    cache = Cache(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    for key in "ab":
        cache.write("factors", key, b"content")
    monkeypatch.undo()
    assert [file.name for file in (tmp_path / "factors").iterdir()] == [MARK]
    (record,) = caplog.records
    assert "No space left on device" in record.getMessage()
    assert cache.read("factors", "a", content) is None


def test_a_place_that_is_no_folder_is_a_cache_without_entries(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file")
    with cache.lock("a", "it"):
        cache.write("factors", "a", b"content")
    assert cache.read("factors", "a", content) is None
    assert "going on without it" in caplog.text


def test_half_written_entries_are_no_entries_and_go_after_a_day(tmp_path):
    cache = Cache(tmp_path)
    cache.write("factors", "a", b"content")
    old, new, another = (f"{name}.partial" for name in ("0" * 32, "1" * 32, "download"))
    for name in (old, new, another):
        (tmp_path / "factors" / name).write_text("half")
        if name != new:
            age(cache, name, 2)
    assert len(entries(tmp_path)) == 1
    Cache(tmp_path).write("factors", "b", b"content")  # of a later run
    left = {file.name for file in (tmp_path / "factors").glob("*.partial")}
    assert left == {new, another}, "what does not have the form of our own is left alone"


def test_of_two_that_need_the_same_one_makes_it_and_the_other_says_that_it_waits(tmp_path, caplog):
    caplog.set_level("INFO")
    made, entered = [], threading.Event()

    def need():
        cache = Cache(tmp_path)
        with cache.lock("key", "the thing"):
            if cache.read("factors", "a", content) is None:
                entered.set()
                time.sleep(0.3)
                made.append(1)
                cache.write("factors", "a", b"content")

    threads = [threading.Thread(target=need) for _ in range(2)]
    threads[0].start()
    entered.wait()
    threads[1].start()
    for thread in threads:
        thread.join()
    assert made == [1]
    assert caplog.text.count("another process is making the thing; waiting for it") == 1


def tree(root):
    """Every file below a folder, with its bytes."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(root.rglob("*"))}


OWN_FORM = f"{OF_F}.{'0' * 64}.safetensors"
NAMES = st.sampled_from(
    [OWN_FORM, f"{OF_A}.{'0' * 64}.json", MODEL, f"{MODEL}.partial", "a.partial", "notes.txt", "x.lock"]
)
FOLDERS = st.sampled_from([*KINDS, "locks", "mine"])


@settings(max_examples=60)
@given(st.sets(st.tuples(FOLDERS, NAMES, st.booleans()), min_size=1, max_size=6), st.data())
def test_what_another_has_in_folders_of_the_same_names_stays_byte_for_byte(files, data):
    with TemporaryDirectory() as place:
        root = Path(place)
        for kind, name, nested in files:
            file = root / kind / f"{name}_" / "weights" if nested else root / kind / f"my_{name}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"mine")
            os.utime(file.parent, (0, 0))
        before = tree(root)
        cache = Cache(root, limit=data.draw(st.sampled_from([1, 150, None])))
        for key in "abc":
            with cache.lock(key, "it"):
                cache.write("tokens", key, bytes(100))
                cache.write("scores", key, b"{}")
        with contextlib.suppress(OSError):
            imported(cache)
        assert main(["clear", "--dir", str(root)]) == 0
        after = tree(root)
        assert {path: after.get(path) for path in before} == before


def test_the_form_alone_makes_no_entry_of_a_file_in_a_folder_without_the_mark(tmp_path, capsys):
    for kind, name in (("tokens", OWN_FORM), ("models", MODEL), ("scores", f"{OF_A}.{'0' * 64}.json")):
        (tmp_path / kind / name / "x" if kind == "models" else tmp_path / kind).mkdir(parents=True)
        if kind != "models":
            (tmp_path / kind / name).write_bytes(b"mine")
    before = tree(tmp_path)
    assert Cache(tmp_path).read("tokens", "f", content) is None
    assert main(["clear", "--dir", str(tmp_path)]) == 0
    assert tree(tmp_path) == before
    assert capsys.readouterr().err.count("was not made by Lillama") == 3


def test_an_empty_variable_does_not_clear_the_current_folder(tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    cache.write("tokens", "f", b"content")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LILLAMA_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert main(["clear"]) == 0
    assert cache.read("tokens", "f", content) == b"content"


def test_a_foreign_folder_is_named_and_the_other_kinds_are_kept(tmp_path, caplog):
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "thesis.txt").write_text("mine")
    cache = Cache(tmp_path)
    for key in "ab":
        cache.write("tokens", key, b"content")
        cache.write("factors", key, b"content")
    assert keys(cache) == {"a", "b"}
    (record,) = caplog.records
    assert str(tmp_path / "tokens") in record.getMessage()
    assert "not made by Lillama" in record.getMessage()


def test_a_cache_of_a_version_without_marks_is_taken_over(tmp_path):
    cache = Cache(tmp_path)
    cache.write("tokens", "a", b"content")
    (tmp_path / "tokens" / MARK).unlink()
    assert cache.read("tokens", "a", content) is None
    cache.write("tokens", "b", b"content")
    assert keys(cache, "tokens") == {"a", "b"}


def test_a_link_in_a_cache_is_no_entry(tmp_path):
    cache, mine = Cache(tmp_path / "cache"), tmp_path / "mine"
    imported(cache)
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    (cache.root / "gguf" / ("1" * 32)).symlink_to(mine)
    assert keys(cache, "gguf") == {MODEL}
    assert cache.folder("gguf", "1" * 32) is None
    clear(cache.root)
    assert (mine / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(("kind", "suffix"), SUFFIXES.items())
@pytest.mark.parametrize("how", ["swapped", "resealed", "another kind"])
def test_a_file_under_another_key_or_with_a_checksum_of_another_is_dropped(kind, suffix, how, tmp_path, caplog):
    cache = Cache(tmp_path)
    cache.write(kind, "a", b"of a")
    cache.write(kind, "b", b"of b")
    first, second = (entry.path for entry in entries(tmp_path, [kind]))
    if how == "swapped":
        first.rename(first.with_name(first.name.replace(OF_A, OF_B)))
        second.unlink()
    elif how == "resealed":
        second.with_name(f"{OF_B}.{hashlib.sha256(b'poison').hexdigest()}{suffix}").write_bytes(b"poison")
        second.unlink()
    else:
        other = "factors" if kind == "tokens" else "tokens"
        cache.write(other, "b", b"of another kind")
        (file,) = (entry.path for entry in entries(tmp_path, [other]))
        second.unlink()
        file.rename(second.with_name(file.stem + second.suffix))
    assert cache.read(kind, "b", content) is None
    assert "damaged" in caplog.text
    assert "b" not in keys(cache, kind)


def test_content_that_its_reader_does_not_take_is_dropped(tmp_path, caplog):
    def refuse(file):
        raise KeyError("ids")

    cache = Cache(tmp_path)
    cache.write("scores", "a", b"[]")
    assert cache.read("scores", "a", refuse) is None
    assert "damaged" in caplog.text
    assert not entries(tmp_path)


def poison(place, how):
    weights = place / "weights"
    if how == "a byte":
        weights.write_bytes(b"Weights")
    elif how == "shorter":
        weights.write_bytes(b"weight")
    elif how == "gone":
        weights.unlink()
    elif how == "one more":
        (place / "model.safetensors").write_bytes(b"poison")
    elif how == "no seal":
        (place / "seal.json").unlink()
    elif how == "a wrong seal":
        (place / "seal.json").write_text("[" * 100_000)
    elif how == "resealed":
        weights.write_bytes(b"poison")
        seal(place, "gguf", "1" * 32)
    elif how == "swapped":
        other = imported(Cache(place.parent.parent), b"other", "1" * 32)
        remove(place)
        other.rename(place)


@pytest.mark.parametrize(
    "how", ["a byte", "shorter", "gone", "one more", "no seal", "a wrong seal", "resealed", "swapped"]
)
def test_a_folder_that_is_not_what_was_written_under_its_key_is_dropped(tmp_path, caplog, how):
    cache = Cache(tmp_path)
    place = imported(cache)
    assert cache.folder("gguf", MODEL) == place
    poison(place, how)
    assert cache.folder("gguf", MODEL) is None
    assert "damaged" in caplog.text
    assert not place.exists()
    assert imported(cache).joinpath("weights").read_bytes() == b"weights"
    assert cache.folder("gguf", MODEL) == place


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    def half(folder):
        (folder / "weights").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    cache = Cache(tmp_path)
    with pytest.raises(OSError, match="No space"):
        cache.write_folder("gguf", MODEL, half)
    assert cache.folder("gguf", MODEL) is None
    assert [path.name for path in (tmp_path / "gguf").iterdir()] == [MARK]


@pytest.mark.parametrize(("mask", "folders", "files"), [(0o002, 0o775, 0o664), (0o022, 0o755, 0o644)])
def test_whoever_the_umask_lets_shares_the_cache(tmp_path, mask, folders, files):
    def private(folder):  # as safetensors writes its files
        (folder / "weights").touch(0o600)
        (folder / "sub").mkdir()
        (folder / "sub" / "more").touch(0o600)

    before = os.umask(mask)
    try:
        cache = Cache(tmp_path / "cache")
        with cache.lock("a", "it"):
            cache.write("tokens", "a", b"content")
            cache.write_folder("gguf", MODEL, private)
    finally:
        os.umask(before)
    for path in (cache.root, *cache.root.rglob("*")):
        assert path.stat().st_mode & 0o777 == (folders if path.is_dir() else files), path


def filled(root):
    cache = Cache(root)
    cache.write("tokens", "f", bytes(1500))
    for key in "ab":
        cache.write("factors", key, bytes(1_000_000))
    imported(cache, bytes(7))
    age(cache, "a", 10)
    return cache


def test_the_command_lists_kinds_entries_sizes_and_last_use(tmp_path, capsys):
    filled(tmp_path)
    assert main(["--dir", str(tmp_path)]) == 0
    place, _, *lines = capsys.readouterr().out.splitlines()
    assert place == str(tmp_path)
    rows = {line.split()[0]: line.split()[1:4] for line in lines}
    assert rows == {
        "gguf": ["1", str(7 + (tmp_path / "gguf" / MODEL / "seal.json").stat().st_size), "B"],
        "joined": ["0", "0", "B"],
        "tokens": ["1", "1.5", "kB"],
        "factors": ["2", "2.0", "MB"],
        "scores": ["0", "0", "B"],
        "models": ["0", "0", "B"],
        "harness": ["0", "0", "B"],
        "total": ["4", "2.0", "MB"],
    }
    assert all(
        time.strftime("%Y-") in line for line in lines if not line.startswith(("joined", "scores", "models", "harness"))
    )


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ([], set()),
        (["factors"], {"gguf", "tokens"}),
        (["gguf", "tokens"], {"factors"}),
        (["--older-than", "5"], {"gguf", "tokens", "factors"}),
    ],
)
def test_the_command_clears(tmp_path, capsys, words, left):
    filled(tmp_path)
    before = sum(entry.size for entry in entries(tmp_path))
    assert main(["clear", *words, "--dir", str(tmp_path)]) == 0
    found = entries(tmp_path)
    assert {entry.kind for entry in found} == left
    assert before - sum(entry.size for entry in found) > 0
    assert "freed" in capsys.readouterr().out
    if "--older-than" in words:
        assert keys(Cache(tmp_path)) == {"b"}


@pytest.mark.parametrize("words", [["clear", "token"], ["clear", "--older-than", "-1"]])
def test_a_wrong_request_is_one_line_with_status_2_and_clears_nothing(tmp_path, capsys, words):
    filled(tmp_path)
    assert main([*words, "--dir", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert len(err.splitlines()) == 1
    assert len(entries(tmp_path)) == 4


@pytest.mark.parametrize("value", ["/somewhere", "", None])
def test_the_commands_folder_is_a_runs(value, monkeypatch):
    if value is None:
        monkeypatch.delenv("LILLAMA_CACHE")
    else:
        monkeypatch.setenv("LILLAMA_CACHE", value)
    assert str(default_root()) == composed().cache_dir == (value or "~/.cache/lillama")


@pytest.mark.parametrize("words", [["clear", "--dir", ""], ["--dir", " "], ["--dir", "~no_such_user/x"]])
def test_a_folder_that_is_none_is_refused(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    try:
        status = main(words)
    except SystemExit as leave:
        status = leave.code
    assert status == 2
    assert "--dir" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "models").is_dir()


def test_clear_says_what_is_gone(tmp_path):
    filled(tmp_path)
    assert {entry.kind for entry in clear(tmp_path, ["tokens"])} == {"tokens"}


@pytest.mark.parametrize("limit", ["0", "-1", "inf"])
def test_a_limit_that_is_none_is_refused_by_name(limit):
    with pytest.raises(ConfigError, match="cache_limit_gb="):
        composed(f"cache_limit_gb={limit}")


def test_the_limit_has_no_effect_on_figures():
    first, other = (composed("model=tiny_random", f"cache_limit_gb={limit}") for limit in (1, 0.5))
    assert fingerprint(first) == fingerprint(other)
    assert composed().cache_limit_gb == 20

"""What is kept between runs: whole entries or none, within a limit, made once among processes."""

import os
import threading
import time

import pytest

from lillama.cache import KINDS, Cache, clear, entries
from lillama.cache.__main__ import default_root, main
from lillama.errors import ConfigError
from lillama.fingerprint import run_fingerprint
from tests.conftest import composed


def content(file):
    return file.read_bytes()


def keys(cache, kind="factors"):
    return {entry.path.name.partition(".")[0] for entry in entries(cache.root, [kind])}


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
    Cache(tmp_path).write("tokens", "t", bytes(100))
    old = Cache(tmp_path, limit=350)
    old.write("factors", "a", bytes(100))
    old.write("factors", "b", bytes(100))
    for key, days in (("t", 3), ("a", 2), ("b", 1)):
        age(old, key, days)
    cache = Cache(tmp_path, limit=350)
    assert cache.read("tokens", "t", content) is not None, "used now"
    cache.write("factors", "c", bytes(100))
    assert keys(cache) == {"b", "c"}
    assert keys(cache, "tokens") == {"t"}
    assert sum(entry.size for entry in entries(tmp_path)) <= 350


def test_an_imported_model_is_neither_counted_nor_evicted(tmp_path):
    (tmp_path / "gguf" / "model").mkdir(parents=True)
    (tmp_path / "gguf" / "model" / "weights").write_bytes(bytes(1000))
    cache = Cache(tmp_path, limit=100)
    cache.write("factors", "a", bytes(100))
    assert keys(cache) == {"a"}
    assert keys(cache, "gguf") == {"model"}


def test_what_this_run_uses_stays_and_then_no_more_is_kept(tmp_path, caplog):
    cache = Cache(tmp_path, limit=250)
    for key in "abcd":
        cache.write("factors", key, bytes(100))
    assert keys(cache) == {"a", "b"}
    assert caplog.text.count("cache_limit_gb") == 1
    Cache(tmp_path, limit=250).write("factors", "e", bytes(100))
    assert len(keys(cache)) == 2
    assert "e" in keys(cache)


def test_an_entry_larger_than_the_limit_is_not_kept_and_that_is_said_once(tmp_path, caplog):
    cache = Cache(tmp_path, limit=50)
    cache.write("factors", "small", bytes(20))
    for key in "ab":
        cache.write("factors", key, bytes(60))
    assert keys(cache) == {"small"}
    assert caplog.text.count("larger than cache_limit_gb") == 1


def test_a_full_disk_is_told_once_and_leaves_nothing_behind(tmp_path, caplog, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    cache = Cache(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    for key in "ab":
        cache.write("factors", key, b"content")
    monkeypatch.undo()
    assert not list((tmp_path / "factors").iterdir())
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
    for name in ("old.partial", "new.partial"):
        (tmp_path / "factors" / name).write_text("half")
    age(cache, "old", 2)
    assert len(entries(tmp_path)) == 1
    cache.write("factors", "b", b"content")
    assert [file.name for file in (tmp_path / "factors").glob("*.partial")] == ["new.partial"]


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


def filled(root):
    cache = Cache(root)
    cache.write("tokens", "t", bytes(1500))
    for key in "ab":
        cache.write("factors", key, bytes(1_000_000))
    (root / "gguf" / "m").mkdir(parents=True)
    (root / "gguf" / "m" / "weights").write_bytes(bytes(7))
    age(cache, "a", 10)
    return cache


def test_the_command_lists_kinds_entries_sizes_and_last_use(tmp_path, capsys):
    filled(tmp_path)
    assert main(["--dir", str(tmp_path)]) == 0
    place, _, *lines = capsys.readouterr().out.splitlines()
    assert place == str(tmp_path)
    rows = {line.split()[0]: line.split()[1:4] for line in lines}
    assert rows == {
        "gguf": ["1", "7", "B"],
        "tokens": ["1", "1.5", "kB"],
        "factors": ["2", "2.0", "MB"],
        "scores": ["0", "0", "B"],
        "models": ["0", "0", "B"],
        "total": ["4", "2.0", "MB"],
    }
    assert all(time.strftime("%Y-") in line for line in lines if not line.startswith(("scores", "models")))


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


def test_the_commands_folder_is_a_runs(monkeypatch):
    for value in ("/somewhere", None):
        if value is None:
            monkeypatch.delenv("LILLAMA_CACHE")
        else:
            monkeypatch.setenv("LILLAMA_CACHE", value)
        assert str(default_root()) == composed().cache_dir


def test_clear_says_what_is_gone(tmp_path):
    filled(tmp_path)
    assert {entry.kind for entry in clear(tmp_path, ["tokens"])} == {"tokens"}


@pytest.mark.parametrize("limit", ["0", "-1", "inf"])
def test_a_limit_that_is_none_is_refused_by_name(limit):
    with pytest.raises(ConfigError, match="cache_limit_gb="):
        composed(f"cache_limit_gb={limit}")


def test_the_limit_has_no_effect_on_figures():
    first, other = (composed("model=tiny_random", f"cache_limit_gb={limit}") for limit in (1, 0.5))
    assert run_fingerprint(first) == run_fingerprint(other)
    assert composed().cache_limit_gb == 20

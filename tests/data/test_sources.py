import json

import pytest

from lillama.config import DataConfig, Source
from lillama.data.sources import read_rows, source_identity
from lillama.errors import ConfigError

ROWS = [{"text": "one"}, {"text": "two"}]


def local(path):
    return DataConfig(source=Source.local, path=str(path))


def write(path, content):
    path.write_text(content, encoding="utf-8")
    return path


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_every_form_of_file_gives_the_same_rows(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    write(tmp_path / "a.jsonl", jsonl(ROWS))
    write(tmp_path / "a.json", json.dumps(ROWS))
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "a.parquet"):
        assert list(read_rows(local(tmp_path / name), "data")) == ROWS
    assert list(read_rows(local(write(tmp_path / "a.txt", "one\ntwo\n")), "data")) == [{"text": "one\ntwo\n"}]


def test_a_folder_is_all_its_files_in_order(tmp_path):
    write(tmp_path / "b.jsonl", jsonl(ROWS[1:]))
    write(tmp_path / "a.jsonl", jsonl(ROWS[:1]))
    write(tmp_path / "ignored.bin", "x")
    assert list(read_rows(local(tmp_path), "data")) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", jsonl(ROWS) + '{"txt": 1}\n', r"line 3: needs text.*it has \['txt'\]"),
        ("a.jsonl", jsonl(ROWS) + "\n{broken\n", r"line 4: not JSON"),
        ("a.jsonl", "", "holds no rows"),
        ("a.txt", " \n", "holds no rows"),
        ("a.json", '{"text": "x"}', "must be a JSON list"),
        ("a.json", "[1]", "line 1: must be an object"),
        ("a.parquet", "no parquet", "not a parquet file"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line_with_the_file_and_the_line(name, content, message, tmp_path):
    with pytest.raises(ConfigError, match=rf"^data\.path=.*{message}") as caught:
        read_rows(local(write(tmp_path / name, content)), "data")
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_an_undecodable_one_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read_rows(local(tmp_path / "none.jsonl"), "data")
    with pytest.raises(ConfigError, match="holds no file ending in"):
        read_rows(local(tmp_path), "data")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(ConfigError, match="cannot be read"):
        read_rows(local(tmp_path / "latin.jsonl"), "data")


def test_the_documentation_topics_are_split_without_overlap():
    def topics(split):
        return [row["text"] for row in read_rows(DataConfig(source=Source.stdlib_docs, split=split), "data")]

    train, held_out = topics("train"), topics("heldout")
    assert sorted(train + held_out) == sorted(topics("all"))
    assert 0.08 < len(held_out) / len(topics("all")) < 0.12
    with pytest.raises(ConfigError, match="train, heldout or all"):
        topics("test")


def test_the_identity_follows_the_content_and_not_the_place(tmp_path):
    first = source_identity(local(write(tmp_path / "a.jsonl", jsonl(ROWS))), "data")
    assert source_identity(local(write(tmp_path / "b.jsonl", jsonl(ROWS))), "data") == first
    assert source_identity(local(write(tmp_path / "c.jsonl", jsonl(ROWS[:1]))), "data") != first


def test_a_local_folder_in_the_hubs_layout_reads_as_a_hub_dataset(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.jsonl", jsonl(ROWS))
    config = DataConfig(source=Source.hub, path=str(tmp_path / "set"), split="train")
    assert [row["text"] for row in read_rows(config, "data")] == ["one", "two"]
    write(tmp_path / "set" / "train.jsonl", jsonl(ROWS) + '{"text": null}\n')
    with pytest.raises(ConfigError, match="row 3: needs text"):
        list(read_rows(config, "data"))
    config = DataConfig(source=Source.hub, path=str(tmp_path / "set"), split="nope")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        read_rows(config, "data")


def test_files_are_chosen_by_pattern_in_a_folder(tmp_path):
    for name in ("alpha.py", "zeta.py", "notes.txt"):
        (tmp_path / name).write_text(name)
    chosen = DataConfig(source=Source.local, path=str(tmp_path), files="[a-m]*.py")
    assert [row["text"] for row in read_rows(chosen, "data")] == ["alpha.py"]
    assert source_identity(chosen, "data") != source_identity(local(tmp_path), "data")
    with pytest.raises(ConfigError, match=r"no file of the pattern \*\.c"):
        read_rows(DataConfig(source=Source.local, path=str(tmp_path), files="*.c"), "data")


def test_files_are_chosen_by_pattern_of_a_hub_dataset(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    for name in ("one", "two"):
        write(tmp_path / "set" / f"{name}.jsonl", jsonl([{"text": name}]))
    config = DataConfig(source=Source.hub, path=str(tmp_path / "set"), files="two.jsonl")
    assert [row["text"] for row in read_rows(config, "data")] == ["two"]

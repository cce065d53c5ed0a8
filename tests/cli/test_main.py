"""The `vlalign` command: help, exit codes, and the wording of failures."""

import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

import vlalign
from vlalign import cli
from vlalign.errors import UserError

MODULES = {path.stem for path in Path(cli.__file__).parent.glob("[!_]*.py")}


@pytest.fixture
def failing_command(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes `vlalign doctor` raise the given exception."""

    def install(error: BaseException) -> None:
        def run(args: object) -> int:
            raise error

        module = types.SimpleNamespace(
            __doc__="A test.", add_arguments=lambda parser: None, run=run
        )
        monkeypatch.setitem(sys.modules, "vlalign.cli.doctor", module)

    return install


def test_the_table_lists_exactly_the_modules() -> None:
    assert set(cli.COMMANDS) == MODULES


@pytest.mark.parametrize("name", sorted(MODULES))
def test_help_of_every_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert f"usage: vlalign {name}" in shown
    assert "--help" in shown


def test_top_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(f"  {name} " in shown and text in shown for name, text in cli.COMMANDS.items())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"vlalign {vlalign.__version__}\n"


def test_no_command_prints_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "commands:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sreach", "x"], "unknown command 'sreach'; nearest: search"),
        (["--versoin"], "unexpected argument '--versoin'; nearest: --version"),
        (["doctor", "--jsn=1"], "unexpected argument '--jsn=1'; nearest: --json"),
        (["doctor", "--js"], "unexpected argument '--js'"),  # no abbreviations
        (["doctor", "more"], "unexpected argument 'more'"),
    ],
)
def test_wrong_input_exits_2_and_names_what_is_right(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"vlalign: error: {said}")
    assert "Traceback" not in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(
    ("error", "code", "said", "traceback"),
    [
        (UserError("no such run"), 2, "vlalign: error: no such run\n", False),
        (KeyboardInterrupt(), 130, "vlalign: interrupted\n", False),
        (RuntimeError("boom"), 1, "vlalign: this is a bug in vlalign.", True),
        (ValueError("boom"), 1, "vlalign: this is a bug in vlalign.", True),
        (PermissionError(13, "denied", "x"), 1, "vlalign: the system refused: [Errno 13]", True),
        (RuntimeError("RESOURCE_EXHAUSTED: 9 GiB"), 1, "vlalign: out of memory", True),
    ],
)
def test_failures_have_their_code_and_explanation(
    error: BaseException,
    code: int,
    said: str,
    traceback: bool,
    failing_command: Callable[[BaseException], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing_command(error)
    assert cli.main(["doctor"]) == code
    shown = capsys.readouterr().err
    assert said in shown
    assert ("Traceback" in shown) == traceback
    assert shown.rstrip().splitlines()[-1].startswith("vlalign: ")  # the last line explains


def test_a_reader_that_leaves_is_no_error() -> None:
    code = (
        "import sys, types; from vlalign import cli\n"
        "def run(args):\n"
        "    for line in range(100_000): print(line)\n"
        "    return 0\n"
        "module = types.SimpleNamespace(__doc__='', add_arguments=lambda parser: None, run=run)\n"
        "sys.modules['vlalign.cli.show'] = module\n"
        "sys.exit(cli.main(['show']))\n"
    )
    script = f'"{sys.executable}" -c "$1" | head -n 1; exit ${{PIPESTATUS[0]}}'
    command = ["bash", "-c", script, "bash", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "0\n", "")


def test_help_does_not_start_jax() -> None:
    code = (
        "import sys, time; start = time.process_time()\n"
        "from vlalign.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'jax', 'flax', 'numpy', 'grain'} & set(sys.modules)\n"
        "print(sorted(heavy), time.process_time() - start, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules, seconds = done.stderr.rsplit(" ", 1)
    assert modules == "[]"
    assert float(seconds) < 1.0

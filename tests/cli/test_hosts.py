"""--coordinator, --processes and --process-id of the commands."""

from typing import Any

import pytest

from vlalign.cli import Parser, _hosts
from vlalign.errors import UserError
from vlalign.parallel import hosts
from vlalign.parallel.hosts import Cluster


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[Cluster]:
    """The clusters that were joined; the environment says nothing."""
    found: list[Cluster] = []
    monkeypatch.setattr(hosts, "join", lambda cluster, timeout_s: found.append(cluster))
    monkeypatch.setattr(_hosts.os, "environ", {})
    return found


def run(*arguments: str) -> Any:
    parser = Parser(prog="vlalign train")
    _hosts.add_host_arguments(parser)
    _hosts.join_hosts(parser.parse_args(arguments))


def test_alone_nothing_is_joined(joined: list[Cluster]) -> None:
    run()
    run("--coordinator", "a:1", "--processes", "1", "--process-id", "0")
    assert joined == []


def test_the_arguments_name_the_cluster(joined: list[Cluster]) -> None:
    run("--coordinator", "a:1", "--processes", "4", "--process-id", "0")
    run("--coordinator", "auto")
    assert joined == [
        Cluster("a:1", 4, 0, "the command line"),
        Cluster(None, None, None, "jax's detection"),
    ]


def test_so_does_the_environment(joined: list[Cluster], monkeypatch: pytest.MonkeyPatch) -> None:
    stated = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    monkeypatch.setattr(_hosts.os, "environ", stated)
    run()
    assert joined == [Cluster("a:1", 2, 1, "the environment")]


def test_how_long_they_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    monkeypatch.setattr(hosts, "join", lambda cluster, timeout_s: waits.append(timeout_s))
    run("--coordinator", "a:1", "--processes", "4", "--process-id", "0")
    run("--coordinator", "auto", "--join-timeout", "7")
    assert waits == [300, 7]
    with pytest.raises(UserError, match="--join-timeout 0"):
        run("--coordinator", "auto", "--join-timeout", "0")


@pytest.mark.parametrize("arguments", [["--processes", "2"], ["--processes", "many"]])
def test_bad_arguments_are_errors(joined: list[Cluster], arguments: list[str]) -> None:
    with pytest.raises(UserError, match="--process"):
        run(*arguments)
    assert joined == []

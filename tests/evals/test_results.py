import json

import pytest

from vlalign.errors import UserError
from vlalign.evals.base import Estimate
from vlalign.evals.results import (
    choose,
    evaluate_all,
    flat,
    read_metrics,
    read_results,
    results_of_metrics,
    write_atomically,
    write_results,
)
from vlalign.evals.tables import head, interval, value

RESULTS = {"a": {"top1": Estimate(0.5, 0.4, 0.6, 10)}, "b": {"skipped": Estimate.exact(1, 10)}}


def test_results_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "evals.json"
    write_results(path, 7, RESULTS)
    assert read_results(path) == (7, RESULTS)
    assert [p.name for p in tmp_path.iterdir()] == ["evals.json"]


def test_a_part_is_merged_into_its_own_step_only(tmp_path):
    path = tmp_path / "evals.json"
    write_results(path, 7, RESULTS)
    newer = {"a": {"top1": Estimate(0.9, 0.8, 1.0, 10)}}
    write_results(path, 7, newer)
    assert read_results(path) == (7, {**RESULTS, **newer})
    write_results(path, 8, newer)
    assert read_results(path) == (8, newer)


@pytest.mark.parametrize("text", ["", "[]", '{"step": 1}', '{"step": 1, "evaluators": {"a": 3}}'])
def test_a_file_that_is_no_results_is_named(tmp_path, text):
    path = tmp_path / "evals.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"evals.json is not a results file"):
        read_results(path)


def test_metrics_of_a_resumed_and_killed_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "loss": 2.5}]
    rows.append({"step": 2, "eval/a/top1": 0.5})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3, "lo')
    assert read_metrics(path) == [
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 2.5, "eval/a/top1": 0.5},
    ]
    path.write_text('{"step": 1}\nhello\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 is not a row"):
        read_metrics(path)
    with pytest.raises(UserError, match="no metrics in"):
        read_metrics(tmp_path / "absent")


def test_results_can_be_read_from_metrics():
    rows = [{"step": 5, "eval/a/top1": 0.1}, {"step": 9, **flat(RESULTS)}, {"step": 10, "loss": 1}]
    step, found = results_of_metrics(rows)
    assert step == 9
    assert found["a"]["top1"] == Estimate(0.5, 0.4, 0.6, 0)
    assert found["b"]["skipped"].value == 1


def test_an_unknown_evaluator_names_the_nearest(fake_run):
    evals = fake_run.experiment.evals
    assert list(choose(evals, None)) == ["seen", "unseen", "shape"]
    assert list(choose(evals, ["shape", "seen"])) == ["seen", "shape"]
    with pytest.raises(UserError, match="no evaluator 'unsen'; nearest: unseen"):
        choose(evals, ["unsen"])


def test_one_round_encodes_a_shared_source_once(fake_run, embed):
    encoded = []

    def counted(tower, inputs):
        encoded.append((tower, len(inputs)))
        return embed(tower, inputs)

    results = evaluate_all(fake_run.experiment.evals, fake_run.tools, counted)
    assert list(results) == ["seen", "unseen", "shape"]
    assert sorted(encoded) == [("image", 9), ("image", 18), ("text", 6), ("text", 9), ("text", 18)]


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path):
    path = tmp_path / "x.txt"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_numbers_are_worded_for_people():
    assert head("t2i_recall@5") == "text to image recall@5"
    assert head("i2t_median_rank") == "image to text median rank"
    assert value("t2i_recall@5", 0.4123) == "41.2 %"
    assert value("t2i_median_rank", 1234.0) == "1,234"
    assert value("t2i_median_rank", 2.5) == "2.5"
    assert interval("top1", Estimate(0.5, 0.4, 0.6, 10)) == "40.0 to 60.0 %"
    assert interval("skipped", Estimate.exact(1, 1911)) == "of 1,911"

import dataclasses

import numpy as np
import pytest

from vlalign.errors import UserError
from vlalign.evals.zeroshot import ZeroShot, classifier


def twin(records, tools, embed, label, templates):
    classes = sorted({record.labels[label] for record in records})
    weights = []
    for name in classes:
        mean = 0.0
        for template in templates:
            z = embed("text", tools.tokens([template.replace("{}", name)]))[0].astype(float)
            mean = mean + z / np.sqrt((z * z).sum())
        mean = mean / len(templates)
        weights.append((mean / np.sqrt((mean * mean).sum())).astype(np.float32))
    hits1, hits5, by_class = [], [], {name: [] for name in classes}
    for record in records:
        z = embed("image", tools.image(record.image)[None])[0].astype(float)
        scores = [np.float32(np.dot(z, w.astype(float))) for w in weights]
        own = scores[classes.index(record.labels[label])]
        rank = sum(s >= own for s in scores)
        hits1.append(rank <= 1)
        hits5.append(rank <= 5)
        by_class[record.labels[label]].append(rank <= 1)
    result = {"top1": np.mean(hits1)}
    if len(classes) >= 5:
        result["top5"] = np.mean(hits5)
    result["mean_per_class_recall"] = np.mean([np.mean(h) for h in by_class.values()])
    return result


@pytest.mark.parametrize("label", ["colour", "shape"])
def test_equals_its_twin(world, make_world, tools, embed, label):
    world = make_world(records=world.records[:-4])  # classes of unequal size
    templates = ("a {}", "{} thing", "this is {}")
    evaluator = ZeroShot(source=world, label=label, templates=templates)
    found = evaluator.evaluate(evaluator.prepare(tools), embed)
    expected = twin(world.records, tools, embed, label, templates)
    classes = len({record.labels[label] for record in world.records})
    values = {name: estimate.value for name, estimate in found.items()}
    assert values == pytest.approx({**expected, "classes": classes, "skipped": 0})
    assert ("top5" in values) == (classes >= 5)
    assert found["top1"].low < found["top1"].value < found["top1"].high


def test_the_single_label_serves_too(world, tools, embed):
    by_label = ZeroShot(source=world, label="label")
    by_shape = ZeroShot(source=world, label="shape")
    found = by_label.evaluate(by_label.prepare(tools), embed)
    assert found == by_shape.evaluate(by_shape.prepare(tools), embed)


def test_a_collapsed_model_is_never_right(world, tools):
    evaluator = ZeroShot(source=world, label="shape")
    found = evaluator.evaluate(
        evaluator.prepare(tools), lambda tower, x: np.full((len(x), 4), 0.5, np.float32)
    )
    assert found["top1"].value == found["mean_per_class_recall"].value == 0


def test_records_without_the_label_are_counted(world, make_world, tools, embed):
    records = list(world.records)
    records[1] = dataclasses.replace(records[1], labels={})
    evaluator = ZeroShot(source=make_world(records=tuple(records), broken=(0,)), label="shape")
    found = evaluator.evaluate(evaluator.prepare(tools), embed)
    assert (found["skipped"].value, found["skipped"].count) == (2, len(world))
    assert found["top1"].count == len(world) - 2


def test_templates_are_normalised_one_by_one():
    z_ctd = np.array([[[3.0, 0.0], [0.0, 1.0]]], np.float32)
    assert classifier(z_ctd) == pytest.approx(np.full((1, 2), np.sqrt(0.5)))


def test_an_unknown_label_names_the_nearest(world, make_world, tools):
    with pytest.raises(UserError, match=r"no record has a label 'color'; nearest: colour"):
        ZeroShot(source=world, label="color").prepare(tools)
    with pytest.raises(UserError, match="all records have the same 'colour', 'red'"):
        ZeroShot(source=make_world(records=world.records[:3]), label="colour").prepare(tools)


@pytest.mark.parametrize("templates", [(), ("a picture",), ("{} and {}",)])
def test_templates_need_one_place_for_the_class(world, templates):
    with pytest.raises(ValueError, match="each needs one"):
        ZeroShot(source=world, templates=templates)

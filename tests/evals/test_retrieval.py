import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlalign.data.record import Caption
from vlalign.errors import UserError
from vlalign.evals import ranking
from vlalign.evals.base import Tools
from vlalign.evals.intervals import mean_estimates
from vlalign.evals.retrieval import Retrieval


def twin(records, tools, embed, ks, language="en", kind="name"):
    """Retrieval by loops over single pairs, without any code of `vlalign.evals`."""
    chosen = [
        (r, [c.text for c in r.captions if c.language == language and c.kind == kind])
        for r in records
    ]
    chosen = [(record, texts) for record, texts in chosen if texts]
    images = [embed("image", tools.image(record.image)[None])[0] for record, _ in chosen]
    pairs = [(owner, text) for owner, (_, texts) in enumerate(chosen) for text in texts]
    vectors = [embed("text", tools.tokens([text]))[0] for _, text in pairs]

    def right(pair, image):
        owner, text = pair
        group = chosen[owner][0].group or chosen[owner][0].key
        same = {t.casefold() for t in chosen[image][1]}
        return (chosen[image][0].group or chosen[image][0].key) == group or text.casefold() in same

    def score(image, text):
        return np.float32(np.dot(images[image].astype(float), vectors[text].astype(float)))

    def rank(candidates):
        best = max(s for s, good in candidates if good)
        return 1 + sum(s >= best for s, good in candidates if not good)

    t2i = [
        rank([(score(i, t), right(pair, i)) for i in range(len(images))])
        for t, pair in enumerate(pairs)
    ]
    i2t = [
        rank([(score(i, t), right(pair, i)) for t, pair in enumerate(pairs)])
        for i in range(len(images))
    ]
    result = {}
    for name, ranks in (("t2i", t2i), ("i2t", i2t)):
        result.update({f"{name}_recall@{k}": np.mean([r <= k for r in ranks]) for k in ks})
        result[f"{name}_median_rank"] = np.median(ranks)
    return result


def values(evaluator, tools, embed):
    found = evaluator.evaluate(evaluator.prepare(tools), embed)
    return {name: estimate.value for name, estimate in found.items()}


@pytest.fixture
def tangled(world, make_world, make_record):
    """Groups, equal texts, several captions, a record without captions, duplicates of images."""
    records = list(world.records)
    records[0] = dataclasses.replace(records[0], group="round")
    records[3] = dataclasses.replace(records[3], group="round")
    records[5] = dataclasses.replace(
        records[5], captions=(Caption("A red  CIRCLE", "name"), Caption("a thing", "name"))
    )
    records[7] = dataclasses.replace(records[7], captions=(Caption("x", "name", "fr"),))
    records.append(make_record("red", "square", key="copy"))
    records.append(make_record("red", "circle", key="other", captions=records[5].captions))
    return make_world(records=tuple(records))


def test_equals_its_twin(tangled, tools, embed):
    found = values(Retrieval(source=tangled, ks=(1, 3, 5)), tools, embed)
    skipped = found.pop("skipped")
    expected = twin(
        [
            dataclasses.replace(
                record,
                captions=tuple(
                    dataclasses.replace(c, text=" ".join(c.text.split())) for c in record.captions
                ),
            )
            for record in tangled.records
        ],
        tools,
        embed,
        (1, 3, 5),
    )
    assert found == pytest.approx(expected)
    assert skipped == 1
    assert 0 < found["t2i_recall@5"] < 1


def test_exact_under_padding_and_any_batch(tangled, tools, embed):
    def padded(size):
        def run(tower, inputs):
            parts = []
            for start in range(0, len(inputs), size):
                rows = inputs[start : start + size]
                fill = np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)
                parts.append(embed(tower, np.concatenate([rows, fill]))[: len(rows)])
            return np.concatenate(parts)

        return run

    evaluator = Retrieval(source=tangled)
    prepared = evaluator.prepare(tools)
    whole = evaluator.evaluate(prepared, embed)
    for size in (1, 7, 64):
        assert evaluator.evaluate(prepared, padded(size)) == whole


def test_block_size_changes_no_rank(monkeypatch, tangled, tools, embed):
    whole = values(Retrieval(source=tangled), tools, embed)
    monkeypatch.setattr("vlalign.evals.ranking._BLOCK", 25)
    assert values(Retrieval(source=tangled), tools, embed) == whole


def test_a_collapsed_model_finds_nothing(world, tools):
    def collapsed(tower, inputs):
        return np.full((len(inputs), 4), 0.5, np.float32)

    found = values(Retrieval(source=world), tools, collapsed)
    assert found["t2i_recall@10"] == found["i2t_recall@10"] == 0
    assert found["t2i_median_rank"] == found["i2t_median_rank"] == len(world)


def test_a_perfect_model_finds_all(world, tools):
    keys = {tools.image(r.image).tobytes(): i for i, r in enumerate(world.records)}
    keys |= {
        tools.tokens([r.captions[0].text])[0].tobytes(): i for i, r in enumerate(world.records)
    }
    table = np.eye(len(world), dtype=np.float32)

    def perfect(tower, inputs):
        return table[[keys[row.tobytes()] for row in inputs]]

    found = values(Retrieval(source=world), tools, perfect)
    assert found["t2i_recall@1"] == found["i2t_recall@1"] == 1
    assert found["t2i_median_rank"] == 1


def test_bad_records_are_left_out_and_counted(world, make_world, tools, embed):
    records = list(world.records)
    records[2] = dataclasses.replace(records[2], image=b"no image")
    bad = make_world(records=tuple(records), broken=(4,))
    good = make_world(records=tuple(r for i, r in enumerate(records) if i not in (2, 4)))
    found = Retrieval(source=bad).evaluate(Retrieval(source=bad).prepare(tools), embed)
    assert (found["skipped"].value, found["skipped"].count) == (2, len(world))
    rest = {name: e.value for name, e in found.items() if name != "skipped"}
    expected = values(Retrieval(source=good), tools, embed)
    assert expected.pop("skipped") == 0
    assert rest == expected


def test_languages_and_kinds_choose_the_captions(world, tools, embed):
    german = Retrieval(source=world, language="de").prepare(tools)
    assert german.texts[0] == "eine Figur: red circle"
    assert Retrieval(source=world, caption_kind="keywords").prepare(tools).texts[0] == "red, circle"
    with pytest.raises(UserError, match=r"no captions nane \(en\); nearest: name \(en\)"):
        Retrieval(source=world, caption_kind="nane").prepare(tools)


def test_an_empty_or_wholly_broken_source_is_an_error(make_world, make_record, tools):
    with pytest.raises(UserError, match="World flat is empty"):
        Retrieval(source=make_world(records=())).prepare(tools)
    with pytest.raises(UserError, match=r"no good record: \{'unreadable record': 1\}"):
        Retrieval(source=make_world(records=(make_record("red", "circle"),), broken=(0,))).prepare(
            tools
        )


def test_evaluators_of_one_source_share_its_images(world, make_world, tools):
    first = Retrieval(source=world).prepare(tools)
    again = Retrieval(source=make_world(records=world.records), language="de").prepare(tools)
    assert again.gallery.images is first.gallery.images
    other = Retrieval(source=world).prepare(Tools(image=tools.image, tokens=tools.tokens))
    assert other.gallery.images is not first.gallery.images


@pytest.mark.parametrize("wrong", [{"ks": ()}, {"ks": (0, 5)}, {"every": -1}])
def test_settings_that_mean_nothing_are_refused(world, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Retrieval(source=world, **wrong)


def test_pictures_show_hits_best_first_with_their_truth(world, tools, embed):
    evaluator = Retrieval(source=world)
    (sheet,) = evaluator.pictures(evaluator.prepare(tools), embed)
    assert [row.note for row in sheet.rows] == ["best"] * 4 + ["typical"] * 4 + ["worst"] * 4
    names = {r.captions[0].text: r.image for r in world.records}
    for row in sheet.rows:
        assert len(row.hits) == 8
        assert [h.score for h in row.hits] == sorted((h.score for h in row.hits), reverse=True)
        for hit in row.hits:
            assert hit.image == names[hit.label]
            assert hit.right == (hit.label == row.query)
    assert len({row.query for row in sheet.rows}) == 12
    ranks = [int(row.detail.rsplit(" ", 1)[1]) for row in sheet.rows]
    assert ranks == sorted(ranks)


@st.composite
def problems(draw):
    n = draw(st.integers(2, 12))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    z = rng.integers(-2, 3, (2, n, 2)).astype(np.float32)  # few values: many ties
    tags = [[int(tag)] for tag in rng.integers(0, draw(st.integers(1, n)), n)]
    return z[0], z[1], tags, rng.permutation(n)


@given(problems())
@settings(max_examples=150, deadline=None)
def test_the_order_of_the_gallery_changes_no_rank(problem):
    query, gallery, tags, order = problem
    ranks = ranking.best_ranks(query, gallery, ranking.positives(tags, tags))
    shuffled = ranking.positives(tags, [tags[i] for i in order])
    assert (ranking.best_ranks(query, gallery[order], shuffled) == ranks).all()
    assert ((ranks >= 1) & (ranks <= len(gallery))).all()


@given(problems())
@settings(max_examples=100, deadline=None)
def test_more_wrong_answers_never_help_and_right_copies_never_hurt(problem):
    query, gallery, tags, _ = problem
    ranks = ranking.best_ranks(query, gallery, ranking.positives(tags, tags))
    right_twice = ranking.positives(tags, tags + tags[:1])
    doubled = ranking.best_ranks(query, np.concatenate([gallery, gallery[:1]]), right_twice)
    of_group = np.array([tag == tags[0] for tag in tags])
    assert (doubled[of_group] == ranks[of_group]).all()
    assert (doubled[~of_group] >= ranks[~of_group]).all()


@given(problems())
@settings(max_examples=100, deadline=None)
def test_scores_do_not_depend_on_the_block(problem):
    query, gallery, _, _ = problem
    query, gallery = query / np.float32(3), gallery / np.float32(7)
    whole = ranking.scores(query, gallery)
    for row in range(len(query)):
        assert (ranking.scores(query[row : row + 1], gallery)[0] == whole[row]).all()


def test_a_query_without_a_right_answer_is_an_error():
    with pytest.raises(ValueError, match="1 queries have no positive, the first is query 1"):
        ranking.positives([["a"], ["b"]], [["a"], ["c"]])


def test_recall_grows_with_k(tangled, tools, embed):
    ks = tuple(range(1, 21))
    found = values(Retrieval(source=tangled, ks=ks), tools, embed)
    for name in ("t2i", "i2t"):
        recalls = [found[f"{name}_recall@{k}"] for k in ks]
        assert recalls == sorted(recalls)
        assert recalls[-1] == 1


def test_equal_texts_and_groups_are_positives_of_each_other(tangled, tools):
    prepared = Retrieval(source=tangled).prepare(tools)
    keys = [prepared.gallery.records[row].key for row in prepared.rows]

    def right(text):
        return [keys[place] for place in prepared.to_images.of(prepared.texts.index(text))]

    # Record 0 shares a group with record 3, and its name with records 5 and "other".
    assert right("a red circle") == ["red-circle", "green-circle", "green-triangle", "other"]
    assert right("A red  CIRCLE") == ["red-circle", "green-triangle", "other"]
    assert right("a green circle") == ["red-circle", "green-circle"]
    assert right("a thing") == ["green-triangle", "other"]
    texts = [prepared.texts[place] for place in prepared.to_texts.of(keys.index("copy"))]
    assert texts == ["a red square", "a red square"]


def test_captions_of_one_image_are_drawn_together(world, make_world, tools, embed):
    ways = (str.lower, str.upper, str.title, str.capitalize)  # one embedding, one hit or miss
    records = tuple(
        dataclasses.replace(
            r, captions=tuple(Caption(way(r.captions[0].text), "alt") for way in ways)
        )
        for r in world.records
    )
    evaluator = Retrieval(source=make_world(records=records), caption_kind="alt", ks=(5,))
    prepared = evaluator.prepare(tools)
    found = evaluator.evaluate(prepared, embed)["t2i_recall@5"]
    zimg, ztxt = embed("image", prepared.gallery.images), embed("text", prepared.tokens)
    ranks = ranking.best_ranks(ztxt, zimg, prepared.to_images)
    assert found == mean_estimates((ranks <= 5)[:, None], np.repeat(np.arange(18), 4))[0]
    assert found != mean_estimates((ranks <= 5)[:, None])[0]


def test_scores_are_float32(embed):
    z = embed("image", np.arange(4, dtype=np.uint8)[:, None])
    score = ranking.scores(z, z)
    assert score.dtype == np.float32

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlalign.cli import main


@pytest.fixture
def counted(opened):
    """Counts embedded rows by tower."""
    counts = {"image": 0, "text": 0}
    inner = opened.embed

    def embed(tower, inputs):
        counts[tower] += len(inputs)
        return inner(tower, inputs)

    opened.embed = embed
    return counts


@pytest.mark.parametrize("command", ["eval", "search", "embed", "report"])
def test_help_is_complete(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "RUN" in text
    assert len(text) > 300


def test_eval_prints_and_writes(opened, capsys):
    assert main(["eval", "run"]) == 0
    text = capsys.readouterr().out
    assert "t2i_recall@5" in text
    assert "mean_per_class_recall" in text
    stored = json.loads((opened.path / "evals.json").read_text())
    assert stored["step"] == 40
    assert list(stored["evaluators"]) == ["seen", "unseen", "shape"]


def test_eval_only_as_json(opened, capsys):
    assert main(["eval", "run", "--only", "shape", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed["evaluators"]) == ["shape"]
    assert printed["step"] == 40
    assert not (opened.path / "evals.json").exists()  # that file is of all of them
    assert main(["eval", "run", "--only", "shap"]) == 2
    assert "nearest: shape" in capsys.readouterr().err


def test_report_writes_and_names_its_file(opened, capsys):
    assert main(["report", "run"]) == 0
    assert capsys.readouterr().out.strip() == str(opened.path / "report.html")
    assert (opened.path / "report.html").stat().st_size > 10_000


def test_search_lists_draws_and_remembers(opened, counted, tmp_path, capsys):
    command = ["search", "run", "a red circle", "a blue square", "--top", "5"]
    out = tmp_path / "sheet.png"
    assert main([*command, "--out", str(out)]) == 0
    first = capsys.readouterr().out
    assert counted == {"image": 27, "text": 18 + 9 + 2}
    with Image.open(out) as image:
        assert image.format == "PNG"
    assert main(command) == 0
    last = opened.path / "search" / "last.png"
    assert capsys.readouterr().out == first.replace(f"drawn in {out}\n", f"drawn in {last}\n")
    assert counted == {"image": 27, "text": 18 + 9 + 2 + 2}
    assert len(list((opened.path / "search").glob("*.npz"))) == 2
    assert last.is_file()


def test_search_finds_the_best_of_all_sources(opened, capsys):
    query = opened.embed("text", opened.tools.tokens(["a red circle"]))[0].astype(float)
    source = opened.experiment.evals["seen"].source
    scores = {
        record.captions[0].text: float(
            opened.embed("image", opened.tools.image(record.image)[None])[0].astype(float) @ query
        )
        for record in source.records
    }
    best = sorted(scores, key=lambda name: -scores[name])[:3]
    assert main(["search", "run", "a red circle", "--top", "3", "--source-of", "seen"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.strip()[:1].isdigit()]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert [" ".join(row[2:5]) for row in rows] == best
    assert [row[1] for row in rows] == [f"{scores[name]:.3f}" for name in best]


def test_a_damaged_store_is_made_again(opened, counted, capsys):
    command = ["search", "run", "x", "--source-of", "seen"]
    assert main(command) == 0
    (stored,) = (opened.path / "search").glob("*.npz")
    stored.write_bytes(stored.read_bytes()[:100])
    capsys.readouterr()
    assert main(command) == 0
    assert counted["image"] == 2 * 18
    assert np.load(stored, allow_pickle=False)["images"].shape == (18, 8)


def test_another_step_is_another_store(opened, counted):
    command = ["search", "run", "x", "--source-of", "seen"]
    assert main(command) == 0
    opened.step += 1
    assert main(command) == 0
    assert counted["image"] == 2 * 18


def test_search_names_a_picture(opened, world, tmp_path, capsys):
    path = tmp_path / "query.png"
    path.write_bytes(world.records[4].image)
    assert main(["search", "run", "--image", str(path), "--top", "4"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [line for line in lines if line and line[0].isdigit()]
    names = [" ".join(row[2:]) for row in rows]
    assert len(set(names)) == 4
    assert [float(row[1]) for row in rows] == sorted((float(row[1]) for row in rows), reverse=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either a text"),
        (["x", "--image", "y.png"], "either a text"),
        (["x", "--top", "0"], "--top 0: at least 1"),
        ([" "], "an empty text"),
        (["x", "--out", "a.jpg"], "name it FILE.png"),
        (["--image", "absent.png"], "no such file"),
        (["x", "--source-of", "sen"], "'sen' does not exist in this run; nearest: seen"),
    ],
)
def test_search_words_its_refusals(opened, capsys, arguments, message):
    assert main(["search", "run", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_no_picture_is_refused(opened, tmp_path, capsys):
    path = tmp_path / "a.png"
    path.write_bytes(b"no picture")
    assert main(["search", "run", "--image", str(path)]) == 2
    assert "cannot be used: corrupt image" in capsys.readouterr().err


def test_embed_writes_all_images_and_captions(opened, tmp_path, capsys):
    out = tmp_path / "e.parquet"
    assert main(["embed", "run", "--out", str(out), "--source-of", "seen", "--chunk", "7"]) == 0
    assert "18 images, 54 texts" in capsys.readouterr().out
    file = pq.ParquetFile(out)
    assert file.num_row_groups == 3
    table = file.read()
    assert file.schema_arrow.field("embedding").type.list_size == 8
    rows = table.to_pylist()
    assert {row["kind"] for row in rows} == {"image", "text"}
    for row in (rows[0], rows[7], rows[-1]):
        record = next(
            r for r in opened.experiment.evals["seen"].source.records if r.key == row["key"]
        )
        if row["kind"] == "image":
            expected = opened.embed("image", opened.tools.image(record.image)[None])[0]
        else:
            expected = opened.embed("text", opened.tools.tokens([row["text"]]))[0]
        assert np.array_equal(np.float32(row["embedding"]), expected)
        assert row["group"] == record.key
    metadata = {k.decode(): v.decode() for k, v in file.metadata.metadata.items()}
    assert metadata["step"] == "40"
    assert metadata["run"] == "shapes"
    assert metadata["skipped"] == "0"
    assert {"model", "tokenizer", "preprocess"} <= set(metadata)
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ""] == ["e.parquet"]


def test_embed_counts_what_it_leaves_out(opened, make_world, world, tmp_path, capsys):
    records = (world.records[0], world.records[1], world.records[2])
    broken = make_world(records=records, broken=(1,))
    opened.experiment.evals["seen"] = type(opened.experiment.evals["seen"])(source=broken)
    out = tmp_path / "e.parquet"
    assert main(["embed", "run", "--out", str(out), "--source-of", "seen"]) == 0
    text = capsys.readouterr().out
    assert "2 images" in text
    assert "left out 1 records: unreadable record" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "absent/e.parquet"], "there is no folder absent"),
        (["--out", "e.parquet", "--chunk", "0"], "--chunk 0: at least 1"),
        (["--out", "e.parquet", "--source-of", "shap"], "nearest: shape"),
        (["--out", "."], "is a folder"),
    ],
)
def test_embed_words_its_refusals(opened, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["embed", "run", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "e.parquet").exists()


def test_an_interrupted_embed_leaves_no_file(opened, tmp_path, capsys):
    def fails(tower, inputs):
        raise KeyboardInterrupt

    opened.embed = fails
    assert main(["embed", "run", "--out", str(tmp_path / "e.parquet")]) == 130
    assert not list(tmp_path.glob("*.parquet*"))
    assert not list(tmp_path.glob(".*"))


def test_pictures_are_drawn_on_a_true_colour_terminal(opened, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert main(["search", "run", "x", "--top", "2"]) == 0
    assert "▀" in capsys.readouterr().out
    assert main(["search", "run", "x", "--top", "2", "--no-draw"]) == 0
    assert "▀" not in capsys.readouterr().out

"""A tiny world for evaluators: coloured shapes as PNG, and towers that need no training."""

import dataclasses
import hashlib
import io
import json
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vlalign.data.record import BadRecord, Caption, Record
from vlalign.evals.base import Tools
from vlalign.evals.retrieval import Retrieval
from vlalign.evals.zeroshot import ZeroShot

COLOURS = ("red", "green", "blue", "orange", "purple", "black")
SHAPES = ("circle", "square", "triangle")


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """Records in memory; `broken` ones raise when they are read."""

    records: tuple[Record, ...]
    broken: tuple[int, ...] = ()
    style: str = "flat"

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        if index in self.broken:
            raise BadRecord("unreadable record", f"record {index}")
        return self.records[index]

    def fingerprint(self) -> str:
        return hashlib.sha256(repr((self.records, self.broken)).encode()).hexdigest()


def draw(colour: str, shape: str, size: int = 24) -> bytes:
    image = Image.new("RGBA", (size, size))
    pen = ImageDraw.Draw(image)
    box = (4, 4, size - 5, size - 5)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.polygon([(size // 2, 4), (4, size - 5), (size - 5, size - 5)], fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def record(colour: str, shape: str, **changes: Any) -> Record:
    fields = {
        "key": f"{colour}-{shape}",
        "image": draw(colour, shape),
        "captions": (
            Caption(f"a {colour} {shape}", kind="name", language="en"),
            Caption(f"{colour}, {shape}", kind="keywords", language="en"),
            Caption(f"eine Figur: {colour} {shape}", kind="name", language="de"),
        ),
        "label": shape,
        "labels": {"colour": colour, "shape": shape},
    }
    return Record(**{**fields, **changes})


def read_image(data: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as image:
            paper = Image.new("RGBA", image.size, "white")
            whole = Image.alpha_composite(paper, image.convert("RGBA"))
            return np.asarray(whole.resize((6, 6)).convert("RGB"), np.uint8)
    except OSError as error:
        raise BadRecord("corrupt image", str(error)) from error


def tokenize(texts: Any) -> np.ndarray:
    """Words of the text as ids by hash, up to 8."""
    ids = np.zeros((len(texts), 8), np.int32)
    for row, text in enumerate(texts):
        for place, word in enumerate(text.lower().split()[:8]):
            ids[row, place] = int(hashlib.sha256(word.encode()).hexdigest()[:6], 16) + 1
    return ids


def hashed_embed(dimensions: int = 8) -> Callable[[str, np.ndarray], np.ndarray]:
    """Each different row gets its own random direction."""

    def embed(tower: str, inputs: np.ndarray) -> np.ndarray:
        result = np.zeros((len(inputs), dimensions), np.float32)
        for number, row in enumerate(inputs):
            seed = int(hashlib.sha256(tower.encode() + row.tobytes()).hexdigest()[:12], 16)
            vector = np.random.default_rng(seed).normal(size=dimensions)
            result[number] = vector / np.linalg.norm(vector)
        return result

    return embed


@dataclasses.dataclass
class FakeRun:
    """What `vlalign.runs.open_run` returns, as far as evaluation uses it."""

    path: Path
    experiment: Any
    tools: Tools
    embed: Callable[[str, np.ndarray], np.ndarray]
    tokenizer: Any
    step: int = 40


@pytest.fixture
def make_record() -> Callable[..., Record]:
    return record


@pytest.fixture
def make_world() -> type[World]:
    return World


@pytest.fixture
def world() -> World:
    return World(records=tuple(record(c, s) for c in COLOURS for s in SHAPES))


@pytest.fixture
def tools() -> Tools:
    return Tools(image=read_image, tokens=tokenize)


@pytest.fixture
def embed() -> Callable[[str, np.ndarray], np.ndarray]:
    return hashed_embed()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "shapes"
    folder.mkdir(parents=True)
    (folder / "config.txt").write_text('name = "<shapes> & more"\n', encoding="utf-8")
    (folder / "preprocess.json").write_text("{}", encoding="utf-8")
    (folder / "versions.json").write_text(json.dumps({"jax": "0.10.2"}), encoding="utf-8")
    rows: list[Mapping[str, float]] = [
        {"step": s, "time": 1000.0 + s, "loss": 3.0 / s, "samples_per_s": 500.0 + s % 3}
        for s in range(1, 41)
    ]
    rows += [
        {"step": s, "eval/seen/t2i_recall@5": s / 80, "eval/seen/t2i_recall@5/low": s / 90}
        for s in (20, 40)
    ]
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    return folder


@pytest.fixture
def fake_run(run_dir: Path, world: World, tools: Tools, embed: Any) -> FakeRun:
    other = World(records=world.records[:9], style="other")
    evals = {
        "seen": Retrieval(source=world),
        "unseen": Retrieval(source=other),
        "shape": ZeroShot(source=world, label="shape", templates=("a {}", "some {}")),
    }
    tokenizer = types.SimpleNamespace(fingerprint=lambda: "t0")
    return FakeRun(run_dir, types.SimpleNamespace(evals=evals), tools, embed, tokenizer)


@pytest.fixture
def opened(fake_run: FakeRun, monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    """Commands find `fake_run` under every path: `vlalign.runs` needs a trained model."""
    runs = types.ModuleType("vlalign.runs")
    runs.open_run = lambda path, **options: fake_run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vlalign.runs", runs)
    return fake_run

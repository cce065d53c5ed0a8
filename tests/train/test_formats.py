"""The same content in tar shards, Parquet, a TFDS directory and memory trains alike, to the bit."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vlalign.data.convert import convert
from vlalign.data.formats import open_source
from vlalign.data.formats.tfds import TfdsSource
from vlalign.data.pipeline import Data
from vlalign.data.sources import MemorySource, Source
from vlalign.evals.retrieval import Retrieval
from vlalign.experiment import Experiment
from vlalign.runs import prepare_run
from vlalign.train import loop

Make = Callable[..., Experiment]


def tfds(records: MemorySource, folder: Path) -> Source:
    import tensorflow_datasets as tfds

    class Pairs(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = Path(__file__).parent

        def _info(self) -> Any:
            features = {"image": tfds.features.Image(), "name": tfds.features.Text()}
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
            for i, record in enumerate(records.records):
                yield i, {"image": record.image, "name": record.captions[0].text}

    builder = Pairs(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return TfdsSource(directory=str(builder.data_dir), captions={"name": "name"})


def converted(format: str) -> Callable[[MemorySource, Path], Source]:
    def make(records: MemorySource, folder: Path) -> Source:
        convert(records, folder, format, shard_size=10)
        return open_source(str(folder))

    return make


def losses(experiment: Experiment, run_dir: Path) -> list[float]:
    prepare_run(experiment, run_dir)
    loop.train(experiment, run_dir, quiet=True)
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize(
    "make",
    [converted("tar"), converted("parquet"), converted("jsonl"), tfds],
    ids=["tar", "parquet", "jsonl", "tfds"],
)
def test_formats_train_alike(
    make: Callable[[MemorySource, Path], Source], tiny: Make, pairs: MemorySource, tmp_path: Path
) -> None:
    def run(source: Source, name: str) -> list[float]:
        base: Data = tiny().data
        data = Data(
            source=source,
            views=base.views,
            tokenizer=base.tokenizer,
            batch_size=base.batch_size,
        )
        evals = {"retrieval": Retrieval(source=source, ks=(1,))}
        return losses(tiny(data=data, evals=evals), tmp_path / name)

    wanted = run(pairs, "memory")
    assert len(wanted) == 6
    assert run(make(pairs, tmp_path / "source"), "run") == wanted

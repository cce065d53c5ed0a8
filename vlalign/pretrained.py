"""A pre-trained model in use: images and texts in, unit vectors and probabilities out."""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from vlalign import tree
from vlalign.data.record import BadRecord
from vlalign.data.storage import cache_folder
from vlalign.data.tokenizers.base import TextTokenizer
from vlalign.errors import UserError, nearest
from vlalign.evals.base import IMAGE, TEXT, Embed, Tools
from vlalign.evals.embedder import Embedder
from vlalign.evals.results import write_atomically
from vlalign.evals.run import Experiment
from vlalign.interop import convert
from vlalign.interop.bundle import Bundle
from vlalign.interop.vocabulary import Given
from vlalign.parallel.mesh import MeshSpec, replicated
from vlalign.programs import keep_compiled_programs

Picture = str | Path | bytes | Image.Image | np.ndarray
"""A path, an encoded image, an image of PIL's, or uint8 (h, w), (h, w, 3) or (h, w, 4)."""

_DTYPES = ("float32", "bfloat16", "float16")
_FEW = 8  # inputs of one question; they are not padded to a whole batch
_SHOWN = 256  # inputs from which on progress is shown
_THREADS = 16


class Pretrained:
    """A model that encodes images and texts. `load` makes it.

    bundle: towers, parameters on the host, preprocessing, tokenizer, scale.
    mesh: whose devices encode.   batch_size: inputs encoded at once.
    """

    def __init__(self, bundle: Bundle, mesh: Mesh, batch_size: int) -> None:
        self.bundle, self.mesh, self.batch_size = bundle, mesh, batch_size
        self._params = jax.device_put(dict(bundle.params), replicated(mesh))
        sizes = {min(size, batch_size) for size in (1, _FEW, batch_size)}
        self._embeds = {size: self._embed_by(size) for size in sorted(sizes)}

    def embed(self, tower: str, inputs: np.ndarray) -> np.ndarray:
        """Unit vectors (n, d) float32 of prepared inputs: evaluators' `Embed`."""
        # A question of a few inputs need not wait for a whole batch.
        size = next((size for size in self._embeds if size >= len(inputs)), self.batch_size)
        return self._embeds[size](tower, inputs)

    @property
    def tools(self) -> Tools:
        """What evaluators turn raw images and texts into inputs with."""
        return Tools(
            image=self.bundle.preprocess.evaluate,
            tokens=lambda texts: self.tokenizer.encode(list(texts))[0],
        )

    @property
    def tokenizer(self) -> TextTokenizer:
        """The model's; raises UserError if it was left out."""
        if self.bundle.tokenizer is None:
            raise UserError(
                f"{self.bundle.origin} has no tokenizer: load it with tokenizer=FILE, or encode "
                "images only"
            )
        return self.bundle.tokenizer

    def encode_image(
        self, images: Picture | Iterable[Picture], *, progress: bool | None = None
    ) -> np.ndarray:
        """Unit vectors (n, d) float32 of n images, in their order.

        images: one or more paths, encoded images (bytes), images of PIL's, or uint8 arrays
        (h, w, 3); an iterator is read as it is used.   progress: whether a bar is shown; None: for
        many images, on a terminal.   Raises UserError that names an image which cannot be read.
        """
        one = isinstance(images, str | Path | bytes | Image.Image)
        if isinstance(images, np.ndarray):  # one of objects is a list of images
            one = images.dtype != np.dtype(object) and images.ndim != 4
        given: Any = [images] if one else images
        size = self.bundle.preprocess.size
        with ThreadPoolExecutor(_threads()) as pool:

            def prepare(start: int, some: list[Picture]) -> Callable[[], np.ndarray]:
                jobs: list[Future[np.ndarray]] = [
                    pool.submit(self._pixels, start + place, image)
                    for place, image in enumerate(some)
                ]
                return lambda: np.stack([job.result() for job in jobs])

            try:
                none = np.zeros((0, size, size, 3), np.uint8)
                return self._encode(IMAGE, given, prepare, none, progress)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def encode_text(
        self, texts: str | Iterable[str], *, progress: bool | None = None
    ) -> np.ndarray:
        """Unit vectors (n, d) float32 of n texts, in their order; one text is n = 1.

        progress: as in `encode_image`.   Warns of texts that are longer than the model reads.
        """
        tokenizer = self.tokenizer
        cut: list[np.ndarray] = []

        def prepare(start: int, some: list[str]) -> Callable[[], np.ndarray]:
            for place, text in enumerate(some, start):
                if not isinstance(text, str):
                    raise UserError(f"text {place} is a {type(text).__name__}, not a str")
            ids, longer = tokenizer.encode(some)
            cut.append(longer)
            return lambda: ids

        none = np.zeros((0, self.bundle.context_length), np.int32)
        given = [texts] if isinstance(texts, str) else texts
        found = self._encode(TEXT, given, prepare, none, progress)
        if many := sum(int(longer.sum()) for longer in cut):
            warnings.warn(
                f"{many} of {len(found)} texts have more than the {tokenizer.length} tokens that "
                "the model reads; their ends were cut off",
                stacklevel=2,
            )
        return found

    def similarity(
        self,
        images: Picture | Iterable[Picture],
        texts: str | Iterable[str],
        *,
        progress: bool | None = None,
    ) -> np.ndarray:
        """Probabilities (n, m) float32 of m texts for each of n images.

        softmax over the texts of scale * cosine; where the model has a bias (SigLIP), of each pair
        by itself sigmoid(scale * cosine + bias). Raises UserError if the model has no scale.
        """
        scale, bias = self.bundle.logit_scale, self.bundle.logit_bias
        if scale is None:
            raise UserError(
                f"{self.bundle.origin} has no logit_scale, which probabilities need; compare "
                "encode_image(...) @ encode_text(...).T"
            )
        zimg_nd = self.encode_image(images, progress=progress)
        ztxt_md = self.encode_text(texts, progress=progress)
        logits_nm = math.exp(scale) * (zimg_nd @ ztxt_md.T).astype(np.float64)
        if bias is not None:
            found = 0.5 * (1 + np.tanh(0.5 * (logits_nm + bias)))  # the sigmoid; exp may overflow
        else:
            parts_nm = np.exp(logits_nm - logits_nm.max(axis=1, initial=-np.inf, keepdims=True))
            found = parts_nm / parts_nm.sum(axis=1, keepdims=True)
        return np.asarray(found, np.float32)

    def _encode(
        self,
        tower: str,
        items: Iterable[Any],
        prepare: Callable[[int, list[Any]], Callable[[], np.ndarray]],
        none: np.ndarray,
        progress: bool | None,
    ) -> np.ndarray:
        """prepare: begins to make inputs of some items, the first of that number; gives a function
        that waits for them. A batch is made while the one before is computed.
        """
        total = len(items) if isinstance(items, Sized) else None
        found: list[np.ndarray] = []
        with _bar(tower, total, progress) as advance:
            for rows in _one_ahead(prepare, _chunks(items, self.batch_size)):
                # The end of many waits for a batch, not for one more program to be compiled.
                embed = self._embeds[self.batch_size] if found else self.embed
                found.append(embed(tower, rows))
                advance(len(rows))
        return np.concatenate(found) if found else self.embed(tower, none)

    def _embed_by(self, size: int) -> Embed:
        return Embedder(self.bundle.model, self.mesh, size).using(self._params)

    def _pixels(self, place: int, image: Picture) -> np.ndarray:
        name = f"image {place}"
        try:
            if isinstance(image, str | Path):
                name = f"image {place} ({image})"
                image = Path(image).expanduser().read_bytes()
            if isinstance(image, bytes):
                return self.bundle.preprocess.evaluate(image)
            if isinstance(image, np.ndarray):
                image = _picture(image, name)
            if not isinstance(image, Image.Image):
                raise UserError(
                    f"{name} is a {type(image).__name__}: give a path, bytes, an image of PIL's or "
                    "a uint8 array"
                )
            return self.bundle.preprocess.of_picture(image)
        except BadRecord as error:
            raise UserError(f"{name} cannot be used: {error}") from error
        except OSError as error:
            raise UserError(f"{name} cannot be read: {error.strerror or error}") from error


@dataclasses.dataclass(frozen=True)
class ModelRun:
    """A pre-trained model as evaluation knows a run (`evals.run.Run`).

    path: a folder in vlalign's cache, named by all that an embedding depends on; it holds what a
    run directory would say of that (config.txt, preprocess.json).   step: 0.
    experiment: whose evaluators are used.   tools, embed, tokenizer: the model's.
    """

    path: Path
    experiment: Experiment
    tools: Tools
    embed: Embed
    tokenizer: TextTokenizer
    step: int = 0

    @classmethod
    def of(cls, model: Pretrained, experiment: Experiment) -> "ModelRun":
        """The model with an experiment's evaluators; raises UserError if it has no tokenizer."""
        bundle, tokenizer = model.bundle, model.tokenizer
        digest = hashlib.sha256()
        for name, array in sorted(bundle.flat().items()):
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        config = f"{tree.dumps(bundle.model)}parameters = {digest.hexdigest()}\n"
        spec = json.dumps(bundle.preprocess.spec(), sort_keys=True) + "\n"
        key = hashlib.sha256("\n".join([config, spec, tokenizer.fingerprint()]).encode())
        path = cache_folder() / "models" / key.hexdigest()[:32]
        write_atomically(path / "config.txt", config)
        write_atomically(path / "preprocess.json", spec)
        return cls(path, experiment, model.tools, model.embed, tokenizer)


def load(
    source: str | Path,
    *,
    mesh: Mesh | None = None,
    dtype: str | None = None,
    batch_size: int = 64,
    config: str | Path | None = None,
    tokenizer: str | Path | None = None,
    allow_modules: tuple[str, ...] = (),
) -> Pretrained:
    """The model in a directory, in a file, or at `hf://org/name`, ready to encode.

    mesh: devices that share each batch; None: all.   dtype: of matrix products, "bfloat16" say;
    None: the model's own (float32 in converted ones).   batch_size: inputs encoded at once.
    config: open_clip's configuration of a lone file of weights.   tokenizer: its file, where it
    does not lie beside the weights; "none": do without.   allow_modules: see `tree.loads`.
    Compiled programs are kept for the next process (`programs.keep_compiled_programs`).
    Raises UserError that says what was looked for, and everything that does not fit.
    """
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: at least 1")
    keep_compiled_programs()
    place = None if config is None else Path(config)
    vocabulary: Given = None if tokenizer is None else Path(tokenizer)
    if tokenizer == "none":
        vocabulary = "none"
    bundle = convert.load(str(source), config=place, tokenizer=vocabulary, trust=allow_modules)
    if dtype is not None:
        bundle = _in_dtype(bundle, dtype)
    return Pretrained(bundle, MeshSpec().build() if mesh is None else mesh, batch_size)


def _in_dtype(bundle: Bundle, dtype: str) -> Bundle:
    if dtype not in _DTYPES:
        raise UserError(f"dtype={dtype!r}; valid: {', '.join(_DTYPES)}{nearest(dtype, _DTYPES)}")
    towers: dict[str, Any] = dict(bundle.model)
    model = {name: module.clone(dtype=dtype) for name, module in towers.items()}
    return dataclasses.replace(bundle, model=model)


def _picture(pixels: np.ndarray, name: str) -> Image.Image:
    channels = pixels.shape[2:]
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or channels not in ((), (3,), (4,)):
        raise UserError(
            f"{name} is {pixels.dtype} {pixels.shape}: arrays are uint8 (height, width, 3), "
            "levels 0 to 255, before any preprocessing"
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


def _threads() -> int:
    if hasattr(os, "sched_getaffinity"):
        return min(_THREADS, len(os.sched_getaffinity(0)))
    return min(_THREADS, os.cpu_count() or 1)


def _chunks(items: Iterable[Any], size: int) -> Iterator[tuple[int, list[Any]]]:
    """(number of the first, at most `size` items)."""
    start, some = 0, []
    for item in items:
        some.append(item)
        if len(some) == size:
            yield start, some
            start, some = start + size, []
    if some:
        yield start, some


def _one_ahead(
    prepare: Callable[[int, list[Any]], Callable[[], np.ndarray]],
    chunks: Iterator[tuple[int, list[Any]]],
) -> Iterator[np.ndarray]:
    waiting: Callable[[], np.ndarray] | None = None
    for start, some in chunks:
        coming = prepare(start, some)
        if waiting is not None:
            yield waiting()
        waiting = coming
    if waiting is not None:
        yield waiting()


@contextlib.contextmanager
def _bar(tower: str, total: int | None, wanted: bool | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on the terminal, or nothing; gives the function that advances it."""
    if wanted is False or (wanted is None and total is not None and total < _SHOWN):
        yield lambda count: None
        return
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("ETA"),
        progress.TimeRemainingColumn(),
    )
    seen = console.is_terminal  # in a file, where it was asked for, it stays when it is full
    with progress.Progress(
        *columns, console=console, transient=seen, disable=not (seen or wanted)
    ) as shown:
        task = shown.add_task(f"encoding {tower}s", total=total)
        yield lambda count: shown.advance(task, count)

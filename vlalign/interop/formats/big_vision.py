"""big_vision's `.npz` of SigLIP: no configuration, so sizes are read from the tensors."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlalign.data.preprocess import big_vision
from vlalign.encoders.text import TextTransformer
from vlalign.encoders.vit import ViT
from vlalign.errors import UserError
from vlalign.interop import vocabulary
from vlalign.interop.bundle import Bundle
from vlalign.interop.formats.common import build
from vlalign.interop.hows import Array, Shape
from vlalign.interop.names.big_vision import table
from vlalign.interop.read.weights import Weights, read_weights

_SCANNED = "/encoderblock/"
_GEMMA_TOKENS = 256_000
_NOTE = (
    "an npz says no activation, epsilon or pooling: taken as of SigLIP (tanh GELU, 1e-6, the image "
    "by attention, the text by its last token), with images squashed by TensorFlow's bilinear"
)


def is_two_towers(names: Mapping[str, Array]) -> bool:
    """Whether tensors have the names of big_vision's two towers."""
    plain = {name.removeprefix("params/") for name in names}
    return {"img/pos_embedding", "txt/pos_embedding"} <= plain


def read_file(path: Path, given: vocabulary.Given = None) -> Bundle:
    """The model in an `.npz`. Raises UserError if it is no SigLIP of one image size."""
    weights = read_weights(path)
    tensors = _Unrolled(weights.tensors)
    if not is_two_towers(tensors):
        raise UserError(f"{path} has no img/pos_embedding and txt/pos_embedding: no SigLIP")
    sizes = _Sizes(tensors, path)
    image, size = sizes.image()
    text, length = sizes.text()
    preprocess = big_vision(size)
    tokenizer = vocabulary.siglip_tokenizer(
        given, path.parent, length, gemma=text.vocab_size == _GEMMA_TOKENS
    )
    return build(
        {"image": image, "text": text},
        table(image, text),
        Weights(tensors, weights.notes),
        preprocess=preprocess,
        tokenizer=tokenizer,
        context_length=length,
        origin=str(path),
        notes=(_NOTE,),
    )


class _Unrolled(Mapping[str, Array]):
    """The tensors with each layer of a scanned stack under a name of its own."""

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self._tensors = tensors
        self._names: dict[str, tuple[str, int | None]] = {}
        for name in tensors:
            before, scanned, after = name.partition(_SCANNED)
            if not scanned:
                self._names[name] = (name, None)
                continue
            for layer in range(len(tensors[name])):
                self._names[f"{before}/encoderblock_{layer}/{after}"] = (name, layer)
        self._last: tuple[str, Array] | None = None

    def __getitem__(self, name: str) -> Array:
        file, layer = self._names[name]
        if layer is None:
            return self._tensors[file]
        array: Array = self._tensors[file][layer]
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _Sizes:
    """Sizes of the towers, from shapes."""

    def __init__(self, tensors: Mapping[str, Array], path: Path) -> None:
        self._path = path
        self._tensors = {name.removeprefix("params/"): name for name in tensors}
        self._arrays = tensors

    def _shape(self, name: str, axes: int) -> Shape:
        if name not in self._tensors:
            raise UserError(f"{self._path} has no {name}: no SigLIP of big_vision")
        shape = tuple(self._arrays[self._tensors[name]].shape)
        if len(shape) != axes or 0 in shape:
            raise UserError(f"{self._path}: {name} of shape {shape} is not SigLIP's")
        return shape

    def _stack(self, encoder: str) -> dict[str, Any]:
        block = f"{encoder}/encoderblock_0"
        width, heads, _ = self._shape(f"{block}/MultiHeadDotProductAttention_0/query/kernel", 3)
        hidden = self._shape(f"{block}/MlpBlock_0/Dense_0/kernel", 2)[1]
        end = "/LayerNorm_0/scale"
        start = f"{encoder}/encoderblock_"
        return {
            "width": width,
            "heads": heads,
            "depth": sum(n.startswith(start) and n.endswith(end) for n in self._tensors),
            "mlp_ratio": hidden / width,
            "activation": "gelu_tanh",
            "epsilon": 1e-6,
        }

    def _joint(self, tower: str) -> int | None:
        name = f"{tower}/head/kernel"
        return self._shape(name, 2)[1] if name in self._tensors else None

    def image(self) -> tuple[ViT, int]:
        """The image tower and the side of its images."""
        self._shape("img/MAPHead_0/probe", 3)
        patch = self._shape("img/embedding/kernel", 4)[0]
        length = self._shape("img/pos_embedding", 3)[1]
        joint = self._joint("img")
        tower = ViT(
            patch_size=patch,
            pool="map",
            embed_dim=joint,
            bias=joint is not None,
            position_resize="linear",
            **self._stack("img/Transformer"),
        )
        return tower, math.isqrt(length) * patch

    def text(self) -> tuple[TextTransformer, int]:
        """The text tower and the length of its texts."""
        vocab, _ = self._shape("txt/Embed_0/embedding", 2)
        joint = self._joint("txt")
        tower = TextTransformer(
            vocab_size=vocab,
            embed_dim=joint,
            causal=False,
            pool="map" if "txt/MAPHead_0/probe" in self._tensors else "last",
            mask_padding=False,
            pad_id=0 if vocab == _GEMMA_TOKENS else 1,
            bias=joint is not None,
            **self._stack("txt/Encoder_0"),
        )
        return tower, self._shape("txt/pos_embedding", 3)[1]

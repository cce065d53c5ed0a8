"""PyTorch's files: every kind is read to the bit, and none is executed, however it is damaged."""

import contextlib
import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlalign.errors import UserError
from vlalign.interop.read.pickles import read_pickle
from vlalign.interop.read.weights import read_weights

TORCH = Path(__file__).parent / "golden" / "torch"


def read_all(path: Path) -> dict[str, np.ndarray]:
    return dict(read_weights(path).tensors)


def rewritten(path: Path, out: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """A copy of an archive with each file changed, or left out where the change is None."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return out


def test_dtypes_strides_offsets_and_shared_storages() -> None:
    found, wanted = read_all(TORCH / "tensors.pt"), np.load(TORCH / "tensors.npz")
    assert sorted(found) == sorted(wanted.files)
    for name, array in found.items():
        assert array.shape == wanted[name].shape, name
        if "bfloat16" in name:
            assert str(array.dtype) == "bfloat16"
            array = array.astype(np.float32)
        assert array.dtype == wanted[name].dtype, name
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)


def test_big_endian_files(tmp_path: Path) -> None:
    """The same archive as a big-endian machine writes it: every storage with its bytes swapped."""
    kinds = {"Float": 4, "Half": 2, "BFloat16": 2, "Double": 8, "Long": 8, "Int": 4}
    with zipfile.ZipFile(TORCH / "tensors.pt") as archive:
        pickled = read_pickle(archive.read("tensors/data.pkl"), "test")
    widths = {t.storage.key: kinds.get(t.storage.kind, 1) for t in pickled.values()}

    def swap(name: str, data: bytes) -> bytes:
        folder, _, key = name.rpartition("/")
        if folder.endswith("/data"):
            return np.frombuffer(data, f"u{widths[key]}").byteswap().tobytes()
        return b"big" if key == "byteorder" else data

    big = read_all(rewritten(TORCH / "tensors.pt", tmp_path / "big.pt", swap))
    little = read_all(TORCH / "tensors.pt")
    for name, array in big.items():
        assert array.tobytes() == little[name].tobytes(), name


def test_a_training_file_gives_its_weights_and_says_what_it_leaves() -> None:
    weights, wanted = read_weights(TORCH / "training.pt"), np.load(TORCH / "training.npz")
    assert weights.notes == ("left aside in training.pt: epoch, name, optimizer",)
    assert sorted(weights.tensors) == sorted(wanted.files) == ["module.bias", "module.weight"]
    for name, array in weights.tensors.items():
        np.testing.assert_array_equal(array, wanted[name])


def test_a_torchscript_archive_gives_its_parameters_by_module() -> None:
    found = read_all(TORCH.parent / "openai" / "openai.pt")
    assert found["input_resolution"] == 16
    assert found["visual.transformer.resblocks.0.attn.in_proj_weight"].shape == (192, 64)
    assert str(found["visual.proj"].dtype) == "float16"


def test_a_pickle_of_old_is_refused_with_advice() -> None:
    with pytest.raises(UserError, match=r"as PyTorch wrote before 1\.6.*weights_only=True"):
        read_weights(TORCH / "legacy.pt")


class _Evil:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_calls_is_refused_by_name_and_not_called(
    protocol: int, tmp_path: Path
) -> None:
    proof = tmp_path / "executed"
    evil = pickle.dumps({"weight": _Evil(Path.touch, proof)}, protocol)
    path = tmp_path / "evil.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("evil/data.pkl", evil)
    with pytest.raises(UserError, match=r"wants to use \S+, which is no part of a tensor"):
        read_weights(path)
    assert not proof.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n.",  # a name is no weight
        b"\x80\x02}X\x01\x00\x00\x00ac__torch__.x\nM\n)R.",  # a module is made, not called
        b"\x80\x02(K\x01K\x02d.",  # an instruction that tensors do not need
        b"\x80\x02]q\x00h\x00a.",  # a list in itself
        b"\x80\x02}](K\x01es.",  # a key that cannot be hashed
        b"\x80\x02K\x01Q.",  # a reference to nothing
        b"\x80\x02.",
        b"",
        b"\x80\x02}",
    ],
)
def test_odd_pickles_are_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("odd/data.pkl", data)
    with pytest.raises(UserError, match=r"odd\.pt"):
        read_all(path)


def _pickled(tensor: tuple[Any, ...], storage: str = "FloatStorage", count: int = 4) -> bytes:
    """data.pkl of one tensor `w`: (offset, shape, strides)."""
    out = io.BytesIO()
    out.write(b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(")
    out.write(b"(X\x07\x00\x00\x00storagectorch\n" + storage.encode() + b"\n")
    out.write(b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + _integer(count) + b"tQ")
    offset, shape, strides = tensor
    out.write(_integer(offset))
    for row in (shape, strides):
        out.write(b"(" + b"".join(map(_integer, row)) + b"t")
    out.write(b"\x89}tRs.")
    return out.getvalue()


def _integer(value: int) -> bytes:
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        ((0, (2, 2), (2, 1)), None),
        ((1, (2, 2), (2, 1)), "of a storage of 4 numbers"),
        ((0, (5,), (1,)), "of a storage of 4 numbers"),
        ((0, (10**9, 10**9), (0, 0)), "of a storage of 4 numbers"),
        ((0, (2,), (2**62,)), "of a storage of 4 numbers"),
        ((-1, (2,), (1,)), "is none"),
        ((0, (2,), (-1,)), "is none"),
        ((0, (2, 2), (1,)), "is none"),
        ((0, (1,) * 65, (1,) * 65), "damaged or of a kind unknown"),
    ],
)
def test_a_tensor_stays_in_its_storage(tensor: Any, said: str | None, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", _pickled(tensor))
        archive.writestr("w/data/0", np.arange(4, dtype=np.float32).tobytes())
    if said is None:
        np.testing.assert_array_equal(read_all(path)["w"], [[0, 1], [2, 3]])
        return
    with pytest.raises(UserError, match=said):
        read_all(path)


def test_a_storage_that_is_too_short_or_too_long(tmp_path: Path) -> None:
    for name, data in (("short", b"\0" * 12), ("long", b"\0" * 20)):
        path = tmp_path / f"{name}.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w/data.pkl", _pickled((0, (2, 2), (2, 1))))
            archive.writestr("w/data/0", data)
        with pytest.raises(UserError, match=r"cut short|20 bytes, expected 16"):
            read_all(path)


def test_a_file_left_out_of_the_archive(tmp_path: Path) -> None:
    path = rewritten(
        TORCH / "tensors.pt",
        tmp_path / "t.pt",
        lambda name, data: None if name.endswith("/data/0") else data,
    )
    with pytest.raises(UserError, match="it has no tensors/data/0"):
        read_all(path)


def test_two_sets_of_weights_are_not_chosen_between(tmp_path: Path) -> None:
    path = tmp_path / "two.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", pickle.dumps({"state_dict": {}, "model": {}}, 2))
    with pytest.raises(UserError, match="weights in state_dict and in model: which are meant"):
        read_all(path)


KINDS = ("torch/tensors.pt", "torch/training.pt", "openai/openai.pt", "big_vision/siglip.npz")


def survives(path: Path) -> None:
    """Reads everything of a damaged file: arrays, or UserError."""
    try:
        sizes = [array.nbytes for array in read_weights(path).tensors.values()]
    except UserError as error:
        sizes = [] if str(path) in str(error) else [1 << 60]
    assert max(sizes, default=0) < 1 << 28


@pytest.mark.parametrize("name", [*KINDS, "hf_clip/model.safetensors"])
@given(draw=st.data())
def test_truncated_files(name: str, draw: st.DataObject, tmp_path_factory: Any) -> None:
    whole = (TORCH.parent / name).read_bytes()
    path = tmp_path_factory.mktemp("cut") / Path(name).name
    path.write_bytes(whole[: draw.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(UserError):
        read_all(path)
    shutil.rmtree(path.parent)


@pytest.mark.parametrize("name", [*KINDS, "hf_clip/model.safetensors"])
@given(draw=st.data())
def test_files_with_bytes_changed(name: str, draw: st.DataObject, tmp_path_factory: Any) -> None:
    data = bytearray((TORCH.parent / name).read_bytes())
    near = st.integers(0, min(len(data), 4096) - 1) | st.integers(len(data) - 2048, len(data) - 1)
    for place in draw.draw(st.lists(near | st.integers(0, len(data) - 1), min_size=1, max_size=8)):
        data[place] = draw.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("changed") / Path(name).name
    path.write_bytes(bytes(data))
    survives(path)
    shutil.rmtree(path.parent)


@pytest.mark.parametrize("name", KINDS[:3])
@given(draw=st.data())
def test_descriptions_with_bytes_changed(
    name: str, draw: st.DataObject, tmp_path_factory: Any
) -> None:
    """The archive is whole, with right checksums: only what its pickle says is wrong."""

    def change(member: str, data: bytes) -> bytes:
        if not member.endswith("data.pkl"):
            return data
        changed = bytearray(data)
        places = st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=6)
        for place in draw.draw(places):
            changed[place] = draw.draw(st.integers(0, 255))
        return bytes(changed[: draw.draw(st.integers(len(data) // 2, len(data)))])

    folder = tmp_path_factory.mktemp("pickle")
    survives(rewritten(TORCH.parent / name, folder / "changed.pt", change))
    shutil.rmtree(folder)


@given(data=st.binary(max_size=300))
def test_bytes_that_are_no_pickle(data: bytes) -> None:
    with contextlib.suppress(UserError):  # and nothing else
        read_pickle(data, "bytes")


def test_files_of_other_kinds_are_named(tmp_path: Path) -> None:
    kinds = {
        b"": "empty",
        b"\x89HDF\r\n\x1a\n": "HDF5",
        b"version https://git-lfs.github.com/spec/v1\n": "git-lfs pointer",
        b"something else altogether": "neither safetensors",
    }
    for data, said in kinds.items():
        (tmp_path / "file").write_bytes(data)
        with pytest.raises(UserError, match=said):
            read_weights(tmp_path / "file")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match=r"none of PyTorch: it has 0 data\.pkl"):
        read_weights(tmp_path / "other.zip")
    with pytest.raises(UserError, match="No such file"):
        read_weights(tmp_path / "absent")


def test_npz_headers_that_promise_more_than_there_is(tmp_path: Path) -> None:
    header = io.BytesIO()
    wide = {"descr": "<f4", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(header, wide)
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("w.npy", header.getvalue() + b"\0" * 16)
    with pytest.raises(UserError, match="is not what it holds"):
        read_all(tmp_path / "w.npz")
    np.savez(tmp_path / "o.npz", w=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="w is damaged"):
        read_all(tmp_path / "o.npz")


def test_shards_must_be_those_of_the_index(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    for name in ("a", "b"):
        save_file({name: np.ones(3, np.float32)}, tmp_path / f"{name}.safetensors")
    index = tmp_path / "model.safetensors.index.json"

    def write(places: Any) -> None:
        index.write_text(json.dumps({"metadata": {}, "weight_map": places}))

    write({"a": "a.safetensors", "b": "b.safetensors"})
    assert sorted(read_all(index)) == ["a", "b"]
    for places, said in (
        ({"a": "a.safetensors", "c": "b.safetensors"}, "c is in no file; b is not in the index"),
        ({"a": "b.safetensors", "b": "a.safetensors"}, "a is not in b.safetensors"),
        ({"a": "../a.safetensors"}, "is not the name of a file beside it"),
        ({"a": index.name}, "is an index itself"),
        ({}, "weight_map is empty"),
        (["a"], "weight_map is empty"),
    ):
        write(places)
        with pytest.raises(UserError, match=said):
            read_weights(index)

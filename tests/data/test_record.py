"""Records survive their bytes form, and damaged bytes are a named problem, never a crash."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlalign.data.record import (
    KINDS,
    PROBLEMS,
    BadRecord,
    Caption,
    Record,
    Region,
    Stored,
    decode_record,
    encode_record,
)

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_unit = st.floats(0, 1)
_stored = st.builds(
    lambda dtype, shape, seed: Stored.of(np.random.default_rng(seed).random(shape).astype(dtype)),
    st.sampled_from(["float16", "float32"]),
    st.lists(st.integers(0, 3), max_size=2),
    st.integers(0, 9),
)
_records = st.builds(
    Record,
    key=_text,
    image=st.binary(max_size=50),
    captions=st.lists(
        st.builds(Caption, _text, st.sampled_from(KINDS), _text, _text), max_size=4
    ).map(tuple),
    label=st.none() | _text.filter(bool),
    labels=st.dictionaries(_text, _text, max_size=3),
    group=st.none() | _text.filter(bool),
    weight=st.floats(0, 1e6),
    regions=st.lists(
        st.builds(Region, st.tuples(_unit, _unit, _unit, _unit), _text), max_size=2
    ).map(tuple),
    duplicate=st.none() | _text.filter(bool),
    teacher=st.dictionaries(_text, _stored, max_size=2),
)


def _problem(data: bytes) -> str | None:
    try:
        decode_record(data)
    except BadRecord as problem:
        return problem.kind
    return None


@given(_records)
def test_round_trip(record: Record) -> None:
    data = encode_record(record)
    assert decode_record(data) == record
    assert encode_record(decode_record(data)) == data


@given(_records, st.integers(0, 200), st.integers(0, 255))
def test_damage_is_a_bad_record_or_a_record(record: Record, place: int, value: int) -> None:
    data = bytearray(encode_record(record))
    data[place % len(data)] = value
    assert _problem(bytes(data)) in (None, "unreadable record")


@given(st.binary(max_size=40))
def test_foreign_bytes(data: bytes) -> None:
    for foreign in (data, b"VLR1" + data):
        assert _problem(foreign) == "unreadable record"


@pytest.mark.parametrize(
    "header",
    [
        b'{"key":"a","weight":-1}',
        b'{"key":"a","weight":NaN}',
        b'{"key":3}',
        b'{"key":"a","captions":[["x",1,"en",""]]}',
        b'{"key":"a","regions":[[0,1]]}',
        b'{"key":"a","labels":[]}',
        b"[]",
        b"{}",
        b'{"key":"a"',
        b"[" * 100_000,
    ],
)
def test_wrong_header(header: bytes) -> None:
    with pytest.raises(BadRecord, match="unreadable record"):
        decode_record(b"VLR1" + len(header).to_bytes(4, "little") + header)


def test_problems_have_codes() -> None:
    for code, kind in enumerate(PROBLEMS[1:], start=1):
        problem = BadRecord(kind, "why")
        assert problem.code == code
        assert str(problem) == f"{kind}: why"
        assert pickle.loads(pickle.dumps(problem)).code == code  # workers hand it over
    with pytest.raises(ValueError, match="unknown problem 'ok'"):
        BadRecord("ok")


def test_stored_arrays() -> None:
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    stored = Stored.of(array)
    np.testing.assert_array_equal(stored.array(), array)
    assert stored.array().dtype == np.float16
    record = decode_record(encode_record(Record("a", b"image", teacher={"t": stored})))
    np.testing.assert_array_equal(record.teacher["t"].array(), array)
    assert record.image == b"image"
    with pytest.raises(ValueError, match=r"must be float16 or float32"):
        Stored.of(np.zeros(2))
    with pytest.raises(ValueError, match=r"3 bytes for float32 \(1,\)"):
        Stored("float32", (1,), b"abc")

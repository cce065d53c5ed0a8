"""The configuration as text: what goes out comes in, and nothing else does."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlalign import tree
from vlalign.encoders.vit import ViT
from vlalign.errors import UserError
from vlalign.train.optimizer import Group, Optimizer
from vlalign.train.schedule import Rsqrt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """A component with a field of every kind."""

    number: int = 1
    rate: float = 0.5
    text: str = "a"
    flag: bool = False
    choice: Literal["x", "y"] = "x"
    maybe: float | None = None
    many: tuple[int, ...] = (1, 2)
    pair: tuple[float, str] = (1.0, "b")
    inner: Any = None
    children: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    items: tuple[Any, ...] = ()


ALLOW = (__name__,)


@given(
    number=st.integers(),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    text=st.text(),
    many=st.lists(st.integers(), max_size=4),
    flag=st.booleans(),
)
def test_text_round_trip(number: int, rate: float, text: str, many: list[int], flag: bool) -> None:
    inner = Node(text=text, rate=rate)
    root = Node(number=number, many=tuple(many), flag=flag, inner=inner, items=(inner, Node()))
    assert tree.loads(tree.dumps(root), allow_modules=ALLOW) == root


def test_linen_modules_and_optimizer_round_trip() -> None:
    root = Node(
        children={
            "image": ViT(width=64, pixel_mean=(0.0, 0.1, 0.2)),
            "optimizer": Optimizer(
                schedule=Rsqrt(warmup=3), groups=(Group(path="a", freeze=True),)
            ),
        }
    )
    assert tree.loads(tree.dumps(root), allow_modules=ALLOW) == root


def test_lines_are_sorted_and_one_a_value() -> None:
    lines = tree.dumps(Node(inner=Node())).splitlines()
    assert lines == sorted(lines)
    assert "inner.rate = 0.5" in lines


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("number=3", "number", 3),
        ("rate=3", "rate", 3.0),
        ("text=3", "text", "3"),
        ("text=hello there", "text", "hello there"),
        ("flag=true", "flag", True),
        ("choice=y", "choice", "y"),
        ("maybe=none", "maybe", None),
        ("maybe=2", "maybe", 2.0),
        ("many=(4, 5, 6)", "many", (4, 5, 6)),
        ("many=4,5", "many", (4, 5)),
        ("many=7", "many", (7,)),
        ("pair=(1, 'z')", "pair", (1.0, "z")),
    ],
)
def test_override_takes_the_type_of_the_field(assignment: str, path: str, value: Any) -> None:
    new = getattr(tree.override(Node(), [assignment]), path)
    assert new == value
    assert type(new) is type(value)


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("nmber=3", "nearest: number"),
        ("inner.rte=3", "inner.rate"),
        ("number=3.5", "expected int"),
        ("number=true", "expected int"),
        ("flag=1", "expected bool"),
        ("choice=z", "one of 'x', 'y'"),
        ("many=('a',)", "expected"),
        ("pair=(1,)", "expected"),
        ("inner=3", "inner.number"),
        ("number", "path=value"),
    ],
)
def test_override_refuses_and_says_what_would_be_right(assignment: str, says: str) -> None:
    with pytest.raises(UserError, match=says.replace("(", r"\(")):
        tree.override(Node(inner=Node()), [assignment])


def test_override_reaches_into_modules_mappings_and_tuples() -> None:
    root = Node(children={"image": ViT()}, items=(Group(path="a"), Group(path="b")))
    new = tree.override(root, ["children.image.width=64", "items.1.freeze=true"])
    assert new.children["image"].width == 64
    assert [group.freeze for group in new.items] == [False, True]
    assert root.children["image"].width == 768


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (". = @os:system\n", "not of vlalign"),
        (". = @vlalign.tree:replace\n", "no component class"),
        (". = @vlalign.nowhere:X\n", "cannot be imported"),
        (". = @vlalign.encoders.vit:ViT\nwidht = 3\n", "nearest: width"),
        (". = @vlalign.encoders.vit:ViT\nwidth = 'a'\n", "expected int"),
        (". = @vlalign.encoders.vit:ViT\nwidth = __import__('os')\n", "not a literal"),
        (". = @vlalign.encoders.vit:ViT\nwidth = 3\nwidth = 4\n", "not one new"),
        ("width = 3\n", "root line"),
        (". = @dict\na.b = 3\n", "line of `a` is missing"),
        ("nonsense\n", "not one new"),
    ],
)
def test_loading_refuses_what_was_not_saved(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        tree.loads(text)


def test_foreign_values_are_refused_when_saved() -> None:
    with pytest.raises(UserError, match="inner"):
        tree.dumps(Node(inner=object()))


def test_diff_names_every_change() -> None:
    assert tree.diff(Node(), Node(rate=0.25)) == ["rate: 0.5 -> 0.25"]
    assert tree.diff(Node(), Node()) == []

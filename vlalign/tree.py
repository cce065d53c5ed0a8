"""A tree of components as flat text: override, save, load, compare.

A component is a frozen dataclass or a linen module; a tree is components in components, in mappings
and in tuples. Its text has one sorted line a value, and says everything needed to build it again:

    model.image = @vlalign.encoders.vit:ViT
    model.image.width = 192

Loading builds only classes of vlalign, or of modules the caller names; nothing is ever executed.
"""

import ast
import dataclasses
import importlib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from vlalign.errors import UserError, nearest

# Fields that linen adds to every module; they are not configuration.
_LINEN_FIELDS = frozenset({"parent", "name"})
_DICT, _TUPLE = "@dict", "@tuple"


def is_component(node: Any) -> bool:
    """Whether `node` is an instance of a dataclass (linen modules are)."""
    return dataclasses.is_dataclass(node) and not isinstance(node, type)


def fields_of(component: Any) -> list[str]:
    """Names of the configuration fields of a component or of its class."""
    cls = component if isinstance(component, type) else type(component)
    linen = any(base.__module__.startswith("flax.linen") for base in cls.__mro__)
    return [
        field.name
        for field in dataclasses.fields(cls)
        if field.init and not (linen and field.name in _LINEN_FIELDS)
    ]


def replace(component: Any, **changes: Any) -> Any:
    """A copy of a component with some fields changed."""
    values = {name: getattr(component, name) for name in fields_of(component)}
    return type(component)(**{**values, **changes})


def children(node: Any) -> dict[str, Any]:
    """Path step -> child, for a component, a mapping, or a tuple that holds components."""
    if is_component(node):
        return {name: getattr(node, name) for name in fields_of(node)}
    if isinstance(node, Mapping):
        return {str(key): value for key, value in node.items()}
    if isinstance(node, tuple) and any(is_component(item) for item in node):
        return {str(index): item for index, item in enumerate(node)}
    return {}


def flatten(node: Any, path: str = "") -> dict[str, str]:
    """Path -> text of the value there, for the whole tree. Raises UserError on foreign values."""
    if is_component(node):
        lines = {path: f"@{type(node).__module__}:{type(node).__qualname__}"}
    elif isinstance(node, Mapping):
        lines = {path: _DICT}
    elif children(node):
        lines = {path: _TUPLE}
    else:
        return {path: _literal(node, path)}
    for step, child in children(node).items():
        lines |= flatten(child, f"{path}.{step}" if path else step)
    return lines


def _literal(value: Any, path: str) -> str:
    text = repr(value)
    try:
        if ast.literal_eval(text) == value:
            return text
    except (ValueError, SyntaxError):
        pass
    raise UserError(
        f"{path} = {text}: a configuration holds numbers, strings, booleans, None, tuples of them, "
        "mappings and components (frozen dataclasses, linen modules)"
    )


def dumps(node: Any) -> str:
    """The tree as sorted text, one value a line."""
    return "".join(f"{path or '.'} = {text}\n" for path, text in sorted(flatten(node).items()))


def loads(text: str, *, allow_modules: Iterable[str] = ()) -> Any:
    """The tree that `dumps` wrote. Raises UserError on anything it would not have written.

    allow_modules: packages beside vlalign whose classes may be built.
    """
    lines: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        path, separator, value = line.partition(" = ")
        if not separator or path in lines:
            raise UserError(f"configuration line {number}: `{line}` is not one new `path = value`")
        lines[path] = value
    if "." not in lines:
        raise UserError("configuration: the root line `. = @module:Class` is missing")
    steps: dict[str, list[str]] = {}
    for path in lines:
        if path != ".":
            parent, _, step = path.rpartition(".")
            if (parent or ".") not in lines:
                raise UserError(f"configuration: the line of `{parent}` is missing, not {path}")
            steps.setdefault(parent or ".", []).append(step)
    return _build(".", lines, steps, ("vlalign", *allow_modules))


def _build(
    path: str, lines: Mapping[str, str], steps: Mapping[str, list[str]], allowed: tuple[str, ...]
) -> Any:
    value = lines[path]
    if not value.startswith("@"):
        return _parse_literal(value, path)
    prefix = "" if path == "." else f"{path}."
    parts = {s: _build(prefix + s, lines, steps, allowed) for s in steps.get(path, [])}
    if value == _DICT:
        return parts
    if value == _TUPLE:
        return tuple(parts[key] for key in sorted(parts, key=int))
    cls = _class(value, path, allowed)
    valid = fields_of(cls)
    for name in parts:
        if name not in valid:
            hint = nearest(name, valid)
            raise UserError(f"{prefix}{name}: {cls.__name__} has no such field{hint}")
    hints = typing.get_type_hints(cls)
    checked = {name: conform(part, hints[name], prefix + name) for name, part in parts.items()}
    try:
        return cls(**checked)
    except TypeError as error:
        raise UserError(f"configuration at `{path}`: {error}") from error


def _class(value: str, path: str, allowed: tuple[str, ...]) -> type:
    module, _, name = value[1:].partition(":")
    if not any(module == root or module.startswith(root + ".") for root in allowed):
        raise UserError(
            f"{path}: class {name} of module `{module}` is not of vlalign; if you trust that "
            f"module name it with --allow-module {module}, where it can be imported"
        )
    try:
        cls = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise UserError(f"{path}: module `{module}` cannot be imported: {error}") from error
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise UserError(f"{path}: `{module}` has no component class `{name}`")
    return cls


def _parse_literal(text: str, path: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise UserError(f"{path}: `{text}` is not a literal") from error


def override(node: Any, assignments: Iterable[str]) -> Any:
    """The tree with `path=value` texts applied, each checked against the field's type.

    Raises UserError for an unknown path (naming the nearest valid ones) and for a wrong type.
    """
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise UserError(f"`{assignment}`: an override is path=value, as in train.steps=500")
        node = _set(node, path.strip().split("."), text.strip(), path.strip(), node)
    return node


def _set(node: Any, steps: list[str], text: str, path: str, root: Any) -> Any:
    step, rest = steps[0], steps[1:]
    below = children(node)
    if step not in below:
        leaves = [name for name, value in flatten(root).items() if not value.startswith("@")]
        raise UserError(f"--set {path}: no such path{nearest(path, leaves)}")
    if rest:
        new = _set(below[step], rest, text, path, root)
    elif is_component(below[step]) or isinstance(below[step], Mapping):
        kind = type(below[step]).__name__
        inner = ", ".join(f"{path}.{name}" for name in children(below[step]))
        raise UserError(f"--set {path}: this is a whole {kind}; set one of {inner}")
    else:
        hint = typing.get_type_hints(type(node))[step] if is_component(node) else Any
        # A field of text takes `3` as the text it is.
        value, raw = _parse(text), _conform(text, hint)
        new = text if raw[1] and not _conform(value, hint)[1] else conform(value, hint, path)
    if is_component(node):
        return replace(node, **{step: new})
    if isinstance(node, Mapping):
        return {**node, step: new}
    return tuple(new if str(index) == step else item for index, item in enumerate(node))


def _parse(text: str) -> Any:
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def conform(value: Any, hint: Any, path: str) -> Any:
    """`value` as type `hint` (an int may serve as a float, a lone value as a 1-tuple).

    Raises UserError naming the path, the value and the type that is wanted.
    """
    new, fits = _conform(value, hint)
    if not fits:
        raise UserError(f"{path} = {repr(value)[:200]}: expected {_describe(hint)}")
    return new


def _conform(value: Any, hint: Any) -> tuple[Any, bool]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value, True
    if origin in (typing.Union, types.UnionType):
        tries = [_conform(value, option) for option in args]
        exact = [new for new, fits in tries if fits and type(new) is type(value)]
        loose = [new for new, fits in tries if fits]
        return (exact + loose + [value])[0], bool(loose)
    if origin is Literal:
        return value, any(value == arg and type(value) is type(arg) for arg in args)
    if origin is tuple:
        return _conform_tuple(value, args)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value), True
    if hint is int and isinstance(value, bool):
        return value, False
    if hint is None or hint is type(None):
        return value, value is None
    if hint in (int, float, str, bytes, bool):
        return value, type(value) is hint
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return value, isinstance(value, Mapping)
    # A component or a protocol: the objects themselves check what they are given.
    return value, is_component(value)


def _conform_tuple(value: Any, args: tuple[Any, ...]) -> tuple[Any, bool]:
    items = value if isinstance(value, tuple | list) else (value,)
    if len(args) == 2 and args[1] is Ellipsis:
        wanted: tuple[Any, ...] = (args[0],) * len(items)
    elif len(args) == len(items):
        wanted = args
    else:
        return value, False
    pairs = [_conform(item, hint) for item, hint in zip(items, wanted, strict=True)]
    return tuple(new for new, _ in pairs), all(fits for _, fits in pairs)


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(arg) for arg in typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_describe(arg) for arg in typing.get_args(hint))
    if typing.get_origin(hint) is not None or not isinstance(hint, type):
        return str(hint)
    return "None" if hint is type(None) else hint.__name__


def modules(node: Any) -> tuple[str, ...]:
    """Modules of all component classes in the tree, sorted."""
    found = [text for text in flatten(node).values() if text.startswith("@") and ":" in text]
    return tuple(sorted({text[1:].partition(":")[0] for text in found}))


def diff(old: Any, new: Any) -> list[str]:
    """Lines `path: old -> new` where two trees differ."""
    before, after = flatten(old), flatten(new)
    return [
        f"{path or '.'}: {before.get(path, '(absent)')} -> {after.get(path, '(absent)')}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    ]

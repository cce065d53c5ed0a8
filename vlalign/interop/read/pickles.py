"""An interpreter of the few pickle instructions that torch needs to say where its tensors lie.

A pickle is a program; Python's own interpreter runs whatever it names. This one builds numbers,
texts, tuples, lists and dictionaries, and knows by name the functions below. They do nothing but
describe tensors. Any other name is an error that says it.
"""

import dataclasses
import io
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

from vlalign.errors import UserError

_MOST_OPERATIONS = 20_000_000  # the largest training files have some hundred thousand
_MOST_AXES = 64
_MARK = object()


class Storage(NamedTuple):
    """Numbers in a row: dtype name (`Float`, `BFloat16`, ..., `Untyped`), file, how many."""

    kind: str
    key: str
    length: int


class Tensor(NamedTuple):
    """A view of a storage. dtype: a name of torch where the storage has none (`Untyped`)."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str | None = None


@dataclasses.dataclass
class ScriptModule:
    """A module of a TorchScript archive."""

    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)


class _Name(NamedTuple):
    """A global that the pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


def _integers(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or len(value) > _MOST_AXES:
        raise ValueError("a tensor's shape is not a row of integers")
    if not all(type(x) is int for x in value):
        raise ValueError("a tensor's shape is not of integers")
    return tuple(value)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    """torch's `_rebuild_tensor_v2`; `rest` is of gradients, and a dtype in `_v3`."""
    if not isinstance(storage, Storage) or type(offset) is not int:
        raise ValueError("a tensor without a storage")
    dtype = rest[2] if len(rest) > 2 and isinstance(rest[2], _Name) else None
    if dtype is not None and dtype not in _DTYPES:
        raise ValueError(f"{dtype} where a dtype must be")
    name = None if dtype is None else dtype.name
    return Tensor(storage, offset, _integers(shape), _integers(strides), name)


def _first(value: Any, *rest: Any) -> Any:
    """Of a parameter its tensor: whether it is trained, and its hooks, are of no use here."""
    del rest
    return value


def _empty(*arguments: Any) -> dict[Any, Any]:
    if arguments and arguments != ([],):
        raise ValueError("an OrderedDict with arguments")
    return {}


_FUNCTIONS: dict[_Name, Callable[..., Any]] = {
    _Name("collections", "OrderedDict"): _empty,
    _Name("torch", "Size"): _integers,
    _Name("torch._utils", "_rebuild_tensor"): _tensor,
    _Name("torch._utils", "_rebuild_tensor_v2"): _tensor,
    _Name("torch._utils", "_rebuild_tensor_v3"): _tensor,
    _Name("torch._utils", "_rebuild_parameter"): _first,
    **{
        _Name("torch.jit._pickle", f"build_{kind}list"): _first
        for kind in ("int", "double", "bool", "tensor")
    },
    _Name("torch.jit._pickle", "restore_type_tag"): _first,
}
_DTYPES = frozenset(
    _Name("torch", name)
    for kind in ("float64 float32 float16 bfloat16", "int64 int32 int16 int8 uint8 bool")
    for name in kind.split()
)
_STORAGES = frozenset(
    _Name("torch", f"{kind}Storage")
    for kinds in ("Double Float Half BFloat16", "Long Int Short Char Byte Bool")
    for kind in kinds.split()
) | {_Name("torch.storage", "UntypedStorage")}


def read_pickle(data: bytes, where: str) -> Any:
    """What the pickle describes: plain values, `Tensor`s, and `ScriptModule`s.

    where: for messages. Raises UserError for a damaged pickle and for any name it does not know.
    """
    machine = _Machine()
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(io.BytesIO(data))):
            if count > _MOST_OPERATIONS:
                raise ValueError(f"it has more than {_MOST_OPERATIONS:,} instructions")
            if operation.name == "STOP":
                return machine.stack.pop()
            machine.do(operation.name, argument)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except Exception as error:  # of a damaged file anything may be true
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise UserError(f"{where} is damaged or of a kind unknown here ({reason})") from error
    raise UserError(f"{where} is cut short")


class _Machine:
    """The stack and the memory of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def do(self, name: str, argument: Any) -> None:
        """One instruction."""
        if name in _PUSH:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _PUT:
            self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
        elif name in _GET:
            self.stack.append(self.memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            self._replace(int(name[-1]), tuple)
        elif name not in ("PROTO", "FRAME"):
            step = getattr(self, f"_{name.lower()}", None)
            if step is None:
                raise UserError(f"the pickle instruction {name} is not one that tensors need")
            step(argument)

    def _replace(self, count: int, make: Callable[[list[Any]], Any]) -> None:
        """The last `count` of the stack as one."""
        if len(self.stack) < count or any(item is _MARK for item in self.stack[-count:]):
            raise ValueError("the stack is too short")
        items = self.stack[-count:]
        self.stack[-count:] = [make(items)]

    def _since_mark(self) -> list[Any]:
        place = next(i for i in range(len(self.stack) - 1, -1, -1) if self.stack[i] is _MARK)
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _append(self, _: Any) -> None:
        item = self.stack.pop()
        self._last(list).append(item)

    def _appends(self, _: Any) -> None:
        items = self._since_mark()
        self._last(list).extend(items)

    def _setitem(self, _: Any) -> None:
        self._replace(2, list)
        self._set(self.stack.pop())

    def _setitems(self, _: Any) -> None:
        self._set(self._since_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._last(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):  # others may be costly to hash, and never occur
                raise ValueError(f"a dictionary's key is a {type(key).__name__}")
            target[key] = value

    def _last(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"a {type(self.stack[-1]).__name__} stands where a {kind} must be")
        return self.stack[-1]

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._named(_Name(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._named(_Name(str(module)[:200], str(name)[:200]))

    def _named(self, name: _Name) -> None:
        script = name.module.split(".")[0] == "__torch__"
        if not (script or name in _FUNCTIONS or name in _DTYPES or name in _STORAGES):
            raise UserError(
                f"the file wants to use {name}, which is no part of a tensor, and nothing of a "
                "file is ever executed here. If you trust it, read it with PyTorch and save the "
                "tensors alone: safetensors.torch.save_file(model.state_dict(), FILE)"
            )
        self.stack.append(name)

    def _newobj(self, _: Any) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, _Name) or name.module.split(".")[0] != "__torch__" or arguments:
            raise ValueError(f"an object of {name if isinstance(name, _Name) else '?'}")
        self.stack.append(ScriptModule())

    def _reduce(self, _: Any) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, _Name) or name not in _FUNCTIONS or type(arguments) is not tuple:
            raise ValueError(f"a call of {name if isinstance(name, _Name) else '?'}")
        self.stack.append(_FUNCTIONS[name](*arguments))

    def _build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(state, dict):
            raise ValueError(f"a state that is a {type(state).__name__}")
        if isinstance(target, ScriptModule):
            target.attributes = state
        elif not isinstance(target, dict):  # of a state_dict: `_metadata`, its modules' versions
            raise ValueError(f"a state for a {type(target).__name__}")

    def _binpersid(self, _: Any) -> None:
        word, kind, key, _location, length = self.stack.pop()
        if word != "storage" or not isinstance(kind, _Name) or kind not in _STORAGES:
            raise ValueError("a reference to something that is no storage")
        if type(key) is not str or type(length) is not int or length < 0:
            raise ValueError("a storage without a name or a size")
        self.stack.append(Storage(kind.name.removesuffix("Storage"), key, length))


_PUSH = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}) | frozenset(
    {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "MARK": lambda: _MARK,
}
_PUT = frozenset({"BINPUT", "LONG_BINPUT", "MEMOIZE"})
_GET = frozenset({"BINGET", "LONG_BINGET"})

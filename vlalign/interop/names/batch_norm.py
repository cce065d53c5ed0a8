"""torch's names of convolutions with stored statistics behind them."""

from vlalign.interop.hows import Conv, Parts
from vlalign.interop.rows import Row, Unused

# How many batches the statistics have seen. Loading does not need it.
COUNTERS = (Unused("*.num_batches_tracked"),)


def conv(ours: str, theirs: str, *, bias: bool = True) -> tuple[Row, ...]:
    """A Conv2d of torch."""
    kernel = Row(f"{ours}/kernel", f"{theirs}.weight", Conv())
    return (kernel, Row(f"{ours}/bias", f"{theirs}.bias")) if bias else (kernel,)


def batch_norm(ours: str, theirs: str) -> tuple[Row, ...]:
    """A BatchNorm2d of torch."""
    return (
        Row(f"{ours}/scale", f"{theirs}.weight"),
        Row(f"{ours}/bias", f"{theirs}.bias"),
        Row(f"{ours}/mean", f"{theirs}.running_mean"),
        Row(f"{ours}/var", f"{theirs}.running_var"),
    )


def conv_norm(ours: str, theirs: str) -> tuple[Row, ...]:
    """A convolution without a bias, and the norm behind it: `ConvNormAct` of timm."""
    return (
        *conv(f"{ours}/conv", f"{theirs}.conv", bias=False),
        *batch_norm(f"{ours}/norm", f"{theirs}.bn"),
    )


def from_second(rows: tuple[Row, ...], theirs: str, count: int) -> tuple[Row, ...]:
    """Rows of one layer as those of a stack that begins with their layer 1, behind another kind.

    theirs: prefix with `{i}` in it.   count: layers of the stack.
    """
    stacked = []
    for row in rows:
        names = tuple(
            theirs.replace("{i}", str(index)) + row.names[0] for index in range(1, count + 1)
        )
        stacked.append(Row(row.paths, names, Parts(row.how)))
    return tuple(stacked)

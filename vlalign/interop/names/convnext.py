"""open_clip's names of ConvNeXt: timm's under `trunk`, and a head of its own."""

from vlalign.encoders.convnext import ConvNext
from vlalign.interop.names.batch_norm import conv
from vlalign.interop.names.open_clip import linear, norm
from vlalign.interop.rows import Row, under


def image_rows(tower: ConvNext) -> tuple[Row, ...]:
    """The image tower, without a prefix."""
    block = (
        *conv("conv", "conv_dw"),
        *norm("norm", "norm"),
        *linear("mlp/up", "mlp.fc1"),
        *linear("mlp/down", "mlp.fc2"),
        *((Row("ls/scale", "gamma"),) if tower.layer_scale is not None else ()),
    )
    rows = [*conv("down_1", "stem.0"), *norm("down_1_norm", "stem.1")]
    for index in range(4):
        name, stage = f"down_{index + 1}", f"stages.{index}"
        if index:
            rows += norm(f"{name}_norm", f"{stage}.downsample.0")
            rows += conv(name, f"{stage}.downsample.1")
        rows += under(block, f"stage_{index + 1}/", f"{stage}.blocks.{{i}}.")
    rows += norm("norm", "head.norm")
    if tower.head == "mlp":
        head = (*linear("up", "mlp.fc1"), *linear("proj", "mlp.fc2", bias=False))
    else:
        head = linear("proj", "proj", bias=False)
    return (*under(rows, "", "trunk."), *under(head, "", "head."))

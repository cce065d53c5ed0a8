"""open_clip's names of CLIP's residual networks, which are OpenAI's too."""

from vlalign.encoders.resnet import ResNet
from vlalign.interop.names.batch_norm import batch_norm, conv, from_second
from vlalign.interop.names.open_clip import linear
from vlalign.interop.rows import Row, under

_THREE = tuple(
    row
    for n in (1, 2, 3)
    for row in (*conv(f"conv_{n}", f"conv{n}", bias=False), *batch_norm(f"norm_{n}", f"bn{n}"))
)
_AROUND = (*conv("conv", "downsample.0", bias=False), *batch_norm("norm", "downsample.1"))


def image_rows(tower: ResNet) -> tuple[Row, ...]:
    """The image tower, without a prefix."""
    rows = list(_THREE)
    for number, depth in enumerate(tower.depths, start=1):
        rows += under((*_THREE, *_AROUND), f"stage_{number}/first/", f"layer{number}.0.")
        if depth > 1:
            rest = from_second(_THREE, f"layer{number}.{{i}}.", depth - 1)
            rows += under(rest, f"stage_{number}/blocks/", "")
    pool = (
        Row("position", "positional_embedding"),
        *linear("query", "q_proj"),
        *linear("key", "k_proj"),
        *linear("value", "v_proj"),
        *linear("out", "c_proj", inputs=2),
    )
    return (*rows, *under(pool, "pool/", "attnpool."))

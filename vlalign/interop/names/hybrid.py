"""open_clip's names of ViTamin and of MobileCLIP-B: timm's under `trunk`, and a head."""

from vlalign.encoders.hybrid import HybridViT
from vlalign.encoders.stems import MbConvSpec
from vlalign.interop.hows import Ones
from vlalign.interop.names.batch_norm import batch_norm, conv, from_second
from vlalign.interop.names.open_clip import linear, norm
from vlalign.interop.rows import Row, under

_MBCONV = (
    *norm("norm", "pre_norm"),
    *conv("up", "conv1_1x1"),
    *conv("mix", "conv2_kxk"),
    *conv("down", "conv3_1x1"),
)


def image_rows(tower: HybridViT) -> tuple[Row, ...]:
    """The image tower, without a prefix."""
    spec = tower.stem
    stem = _mbconv_stem(spec) if isinstance(spec, MbConvSpec) else _patch_stem()
    rows = [*under(stem, "stem/", "patch_embed.backbone."), *_blocks(tower)]
    if tower.positions:
        rows.append(Row("position", "pos_embed", Ones(theirs=1)))
    if tower.pool == "class":
        rows.append(Row("class_token", "cls_token", Ones(ours=1, theirs=2)))
    rows += norm("ln_post", "norm" if tower.pool == "class" else "fc_norm")
    # timm's own classifier has a bias, open_clip's linear map has none.
    head = linear("proj", "trunk.head" if tower.bias else "head.proj", bias=tower.bias)
    return (*under(rows, "", "trunk."), *head)


def _blocks(tower: HybridViT) -> tuple[Row, ...]:
    rows = (
        *norm("ln_1", "norm1"),
        *linear("attn/qkv", "attn.qkv"),
        *linear("attn/out", "attn.proj", inputs=2),
        *norm("ln_2", "norm2"),
    )
    if tower.feed_forward == "geglu":
        rows += norm("ln_3", "mlp.norm") + linear("mlp/gate", "mlp.w0")
        rows += linear("mlp/up", "mlp.w1") + linear("mlp/down", "mlp.w2")
    else:
        rows += linear("mlp/up", "mlp.fc1") + linear("mlp/down", "mlp.fc2")
    return under(rows, "blocks/", "blocks.{i}.")


def _mbconv_stem(stem: MbConvSpec) -> tuple[Row, ...]:
    rows = [
        *conv("conv_1", "stem.conv1"),
        *norm("norm_1", "stem.norm1"),
        *conv("conv_2", "stem.conv2"),
        *norm("norm_2", "pool.norm"),
        *conv("conv_3", "pool.proj"),
    ]
    before = stem.start
    for index, (width, depth) in enumerate(zip(stem.widths, stem.depths, strict=True)):
        around = conv("around", "shortcut.expand") if width != before else ()
        rows += under((*_MBCONV, *around), f"stage_{index + 1}_first/", f"stages.{index}.0.")
        if depth > 1:
            rest = from_second(_MBCONV, f"stages.{index}.{{i}}.", depth - 1)
            rows += under(rest, f"stage_{index + 1}/", "")
        before = width
    return tuple(rows)


def _patch_stem() -> tuple[Row, ...]:
    rows: list[Row] = []
    for index in (0, 1):
        rows += conv(f"conv_{index + 1}", f"{index}.conv", bias=False)
        rows += batch_norm(f"norm_{index + 1}", f"{index}.bn")
    return (*rows, *conv("conv_3", "2.conv"))

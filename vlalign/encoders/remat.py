"""What the backward pass may keep of a layer.

Letters: d width, m MLP width (4 d as a rule). In numbers a token and layer, beside the layer's own
input (d), which is always kept, and with the share of the forward products that is computed again:

    full         nothing                                       0          all
    attention    qkv, context, attention_out                   5 d        m / (2 d + m) / 2: a third
    dots         outputs of all projections                    4 d + m    those within attention
    minimal      qkv, context, attention_out, mlp_hidden       5 d + m    q k^T alone
    none         everything that a derivative reads            the most   none

"full" is for the largest batches, "attention" for those that leave some memory, "dots" and
"minimal" where memory is nearly enough. The products within attention are few for short sequences,
but slow on matrix units, which is why "context" is kept apart from the other two.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
from jax.ad_checkpoint import checkpoint_name

from vlalign.errors import UserError, nearest

Remat = Literal["none", "full", "attention", "dots", "minimal"]
Mark = Literal["qkv", "context", "attention_out", "mlp_hidden"]

# Policies that keep arrays by the names that `mark` gives them.
KEPT: dict[str, tuple[Mark, ...]] = {
    "attention": ("qkv", "context", "attention_out"),
    "minimal": ("qkv", "context", "attention_out", "mlp_hidden"),
}


def mark(x: jax.Array, name: Mark) -> jax.Array:
    """`x` under a name that a policy may keep it by; the value is the same."""
    marked: jax.Array = checkpoint_name(x, name)
    return marked


def policy(remat: str) -> Callable[..., Any]:
    """The policy of `jax.checkpoint` by its name in `Remat`.

    Raises UserError for another name.
    """
    if remat in KEPT:
        return jax.checkpoint_policies.save_only_these_names(*KEPT[remat])
    if remat == "dots":
        return jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    if remat == "full":
        return jax.checkpoint_policies.nothing_saveable
    if remat == "none":
        return jax.checkpoint_policies.everything_saveable
    raise UserError(f"remat={remat!r}{nearest(remat, get_args(Remat))}")


def keep_inputs(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`function`, of which the backward pass keeps the inputs alone, whatever the policy is.

    For what costs less to compute again than to read back: norms and activations, whose derivatives
    would otherwise hold several arrays of the size of their input.
    """
    kept: Callable[..., jax.Array] = jax.checkpoint(function, prevent_cse=False)
    return kept

"""What numbers are written in."""

from typing import Literal

import ml_dtypes
import numpy as np

from vlalign.errors import UserError
from vlalign.interop.hows import Array

_LARGEST_HALF = 65504.0
Dtype = Literal["float32", "float16", "bfloat16"]


def as_dtype(array: Array, dtype: Dtype) -> Array:
    """An array of floats in another dtype; others as they are.

    Raises UserError for numbers that float16 does not reach.
    """
    array = np.asarray(array)
    if array.dtype.kind in "iub":
        return array
    wanted = np.dtype(getattr(ml_dtypes, dtype, dtype))
    if dtype == "float16" and array.size and float(np.max(np.abs(array))) > _LARGEST_HALF:
        raise UserError("a parameter is beyond the largest float16, 65504: use bfloat16")
    return np.ascontiguousarray(array.astype(wanted)).reshape(array.shape)

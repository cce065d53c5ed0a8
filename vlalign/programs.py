"""Compiled programs, kept between processes."""

import os


def keep_compiled_programs() -> None:
    """Compiled programs are kept between runs, in the folder `programs` of vlalign's cache.

    JAX_COMPILATION_CACHE_DIR names another place; JAX_ENABLE_COMPILATION_CACHE=0 keeps none.
    """
    import jax

    from vlalign.data.storage import cache_folder

    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "programs"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # jax keeps what took a second. The small ones of a start are a third of starting again.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)

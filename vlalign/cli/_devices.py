"""What is said to jax before it looks at its devices."""

from vlalign.errors import UserError


def simulate(devices: int | None) -> None:
    """Makes jax see `devices` CPU devices; None leaves it alone."""
    if devices is None:
        return
    if devices < 1:
        raise UserError(f"--devices {devices}: at least 1")
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)

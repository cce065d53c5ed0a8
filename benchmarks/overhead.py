"""The cost of all that is around the step: vlalign's loop against a bare loop over the same step.

    python benchmarks/overhead.py [--config emoji_clip] [--steps 40] [--rounds 3]

Both train the same model on the same data, from the same parameters, in turn in one process. "bare"
is written here with plain jax and optax: towers, a dense softmax loss, AdamW whatever the
configuration's optimiser is (so what Muon costs counts against vlalign), no groups, metrics,
checks, logging, checkpoints, or data pipeline (a few batches made beforehand, used in turn).
"vlalign" is the loop as `vlalign train` runs it, data made on the host meanwhile,
evaluation and the final save left out. Prints seconds a step and the ratio of the medians; the aim
is at most 1.25.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vlalign import tree
from vlalign.cli._configs import find_config
from vlalign.evals.results import read_metrics
from vlalign.experiment import Experiment, load_config
from vlalign.train.assemble import Assembly, assemble, run_tokenizer
from vlalign.train.loop import train


def bare(experiment: Experiment, parts: Assembly, steps: int) -> float:
    """Seconds a step of the naive loop, compilation left out."""
    model, optimizer = experiment.model, experiment.optimizer

    def embed(params: Any, name: str, x: jax.Array, key: jax.Array) -> jax.Array:
        pooled = model[name].apply({"params": params[name]}, x, train=True, rngs={"drop": key})
        z = pooled.pooled  # type: ignore[union-attr]
        return z / jnp.linalg.norm(z, axis=1, keepdims=True)

    def loss_fn(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        zimg, ztxt = (embed(params, name, batch[name], key) for name in ("image", "text"))
        logits = jnp.exp(params["objectives"]["clip"]["logit_scale"]) * zimg @ ztxt.T
        rows, columns = jax.nn.log_softmax(logits), jax.nn.log_softmax(logits, axis=0)
        return -0.5 * (jnp.mean(jnp.diag(rows)) + jnp.mean(jnp.diag(columns)))

    tx = optax.chain(
        optax.clip_by_global_norm(optimizer.clip_norm or 1e9),
        optax.adamw(
            optax.warmup_cosine_decay_schedule(0.0, optimizer.learning_rate, 10, steps + 20),
            optimizer.b1,
            optimizer.b2,
            optimizer.epsilon,
            weight_decay=optimizer.weight_decay,
        ),
    )

    def step(params: Any, opt_state: Any, batch: Any, key: jax.Array) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(params, batch, key)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    params = parts.plan.create(0).params
    opt_state = tx.init(params)
    with experiment.data.batches(parts.tokenizer, seed=0) as source:
        made = [next(source) for _ in range(4)]
    batches = [{n: jnp.asarray(b[n]) for n in ("image", "text")} for b in made]
    compiled = jax.jit(step, donate_argnums=(0, 1))
    key = jax.random.key(0)
    for batch in batches[:3]:  # the second call compiles again: it gets back what it gave out
        params, opt_state, loss = compiled(params, opt_state, batch, key)
    loss.block_until_ready()
    start = time.perf_counter()
    for number in range(steps):
        key = jax.random.key(number)
        params, opt_state, loss = compiled(params, opt_state, batches[number % 4], key)
    loss.block_until_ready()
    return (time.perf_counter() - start) / steps


def whole(experiment: Experiment, steps: int) -> float:
    """Seconds a step of `vlalign train`, from its own log; start-up left out."""
    sets = [f"train.steps={steps + 10}", "train.log_every=10", "train.save_every=1000000"]
    shortened = tree.override(experiment, [*sets, "optimizer.schedule.warmup=5"])
    shortened = tree.replace(shortened, evals={})
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        train(shortened, Path(folder), quiet=True)
        rows = read_metrics(Path(folder) / "metrics.jsonl")
    first, last = rows[0], rows[-1]
    return float((last["time"] - first["time"]) / (last["step"] - first["step"]))


def main() -> None:
    """Measures both in turn and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default=None, help="as in `vlalign train`")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    experiment = load_config(find_config(args.config))
    found: dict[str, list[float]] = {"bare": [], "vlalign": []}
    with tempfile.TemporaryDirectory() as folder:
        parts = assemble(experiment, run_tokenizer(experiment, Path(folder)))
        for number in range(args.rounds):
            found["bare"].append(bare(experiment, parts, args.steps))
            found["vlalign"].append(whole(experiment, args.steps))
            print(f"round {number + 1}: " + _line({n: v[-1] for n, v in found.items()}), flush=True)
    medians = {name: statistics.median(values) for name, values in found.items()}
    print("median:  " + _line(medians))


def _line(seconds: dict[str, float]) -> str:
    ratio = seconds["vlalign"] / seconds["bare"]
    return f"bare {seconds['bare']:.3f} s, vlalign {seconds['vlalign']:.3f} s, ratio {ratio:.2f}"


if __name__ == "__main__":
    main()

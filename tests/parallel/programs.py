"""Training programs of a small model, compiled for a mesh; the collectives in them, from the text.

HLO writes groups of devices in three ways: `{{0,1},{2,3}}`; `[2,2]<=[4]`, numbers in order, put
into a shape and transposed; and `mesh['axis_0'=2,'axis_1'=2] {'axis_1'}`, the axes of a mesh.
"""

import dataclasses
import functools
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from jax.sharding import Mesh

from vlalign.encoders.text import TextTransformer
from vlalign.encoders.vit import ViT
from vlalign.objectives.base import Objective
from vlalign.objectives.contrastive import Clip
from vlalign.objectives.total import total_loss
from vlalign.parallel.mesh import MeshSpec, batch_sharding
from vlalign.parallel.rules import AxisRules, axis_names, tree_shardings

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BATCH = 1024
LENGTH = 16  # tokens of a text, and of an image
SMALL_TOWER: dict[str, Any] = {"width": 32, "depth": 2, "heads": 4, "embed_dim": 16}
RULES = AxisRules(whole_below=512)  # of parameters so small, the matrices


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective: its kind, in how many loops it stands, elements of each array, groups."""

    kind: str
    loops: int
    sizes: tuple[int, ...]
    groups: np.ndarray
    line: str


def model(tower: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """An image and a text tower. more: fields of the image tower."""
    return {
        "image": ViT(patch_size=8, pool="mean", **tower, **more),
        "text": TextTransformer(vocab_size=64, **tower),
    }


def fields(batch: int) -> dict[str, np.ndarray]:
    """A batch of random images and texts, some rows of weight 0."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (batch, 32, 32, 3)).astype(np.uint8),
        "text": rng.integers(1, 64, (batch, LENGTH)).astype(np.int32),
        "weight": (rng.random(batch) > 0.1).astype(np.float32),
    }


class Case:
    """A model with objectives: its parameters, and gradients of the total loss on any mesh."""

    def __init__(
        self, model: Mapping[str, Any], objectives: Mapping[str, Objective], batch: int = BATCH
    ) -> None:
        self.model, self.objectives, self.fields = model, objectives, fields(batch)
        self.shapes = jax.eval_shape(lambda: meta.unbox(self._boxed()))
        self.names = axis_names(jax.eval_shape(self._boxed))

    def _boxed(self) -> dict[str, Any]:
        key = jax.random.key(0)
        params: dict[str, Any] = {
            name: module.init({"params": key}, jnp.asarray(self.fields[name][:1]))["params"]
            for name, module in self.model.items()
        }
        own = {name: objective.init(key) for name, objective in self.objectives.items()}
        return params | {"objectives": own}

    def _loss(self, params: Any, batch: Any, parts: int) -> tuple[jax.Array, Any]:
        towers = jax.lax.stop_gradient({name: params[name] for name in self.model})
        size = batch["weight"].shape[0]
        memory = {n: o.init_memory(towers, size) for n, o in self.objectives.items()}
        return total_loss(
            self.model,
            self.objectives,
            params,
            memory,
            batch,
            jax.random.key(7),
            jnp.int32(0),
            micro_batches=parts,
        )

    def compiled(self, mesh: Mesh, parts: int, rules: AxisRules = RULES) -> Any:
        """Loss, metrics, memory and gradients of (params, batch)."""
        shardings = tree_shardings(self.shapes, self.names, rules, mesh)
        rows = batch_sharding(mesh)
        given = jax.tree.map(
            lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding),
            self.shapes,
            shardings,
        )
        batch = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows)
            for name, x in self.fields.items()
        }
        grad = jax.value_and_grad(functools.partial(self._loss, parts=parts), has_aux=True)
        with jax.set_mesh(mesh):
            jitted = jax.jit(grad, out_shardings=(None, shardings))
            return jitted.lower(given, batch).compile()

    def run(self, spec: MeshSpec, parts: int, rules: AxisRules = RULES) -> dict[str, np.ndarray]:
        """Everything that comes out, by name."""
        mesh = spec.build()
        with jax.set_mesh(mesh):
            shardings = tree_shardings(self.shapes, self.names, rules, mesh)
            params = jax.jit(lambda: meta.unbox(self._boxed()), out_shardings=shardings)()
            batch = {n: jax.device_put(x, batch_sharding(mesh)) for n, x in self.fields.items()}
            out = self.compiled(mesh, parts, rules)(params, batch)
        flat = jax.tree_util.tree_flatten_with_path(out)[0]
        return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def clip(tower: Mapping[str, Any] = SMALL_TOWER, batch: int = BATCH) -> Case:
    """Plain CLIP."""
    return Case(model(tower), {"clip": Clip()}, batch)


def tpu_devices(topology: str, *, slices: int = 1) -> list[Any]:
    """The chips of a pod that is only described, for compiling; needs libtpu."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    from jax.experimental import topologies

    return list(topologies.get_topology_desc(topology, "tpu", num_slices=slices).devices)


_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_LINE = re.compile(r"^\s*(?:ROOT )?%[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(")
_CALLED = re.compile(r"(body|calls|to_apply|called_computations)=\{?%?([\w.\-]+)")
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?\]\S*)\))? \{(.*?)\}")
_REDUCERS = ("all-reduce", "reduce-scatter", "reduce", "scatter", "sort", "reduce-window", "map")


def collectives(text: str) -> list[Collective]:
    """All collectives of a compiled program, in loops and out of them."""
    bodies: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            lines = bodies.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        else:
            lines.append(line)
    return list(_walk(bodies, entry, 0))


def _walk(bodies: Mapping[str, list[str]], name: str, loops: int) -> Iterator[Collective]:
    for line in bodies[name]:
        if not (found := _LINE.match(line)):
            continue
        shape, opcode = found[1], found[2].removesuffix("-start")
        if opcode in KINDS:
            sizes = [
                math.prod(int(n) for n in dims.split(",") if n)
                for dims in re.findall(r"[a-z]+\d*\[([\d,]*)\]", shape)
            ]
            yield Collective(opcode, loops, tuple(sizes), _groups(line), line)
        elif opcode not in _REDUCERS:
            for how, called in _CALLED.findall(line):
                yield from _walk(bodies, called, loops + (how == "body"))


def _groups(line: str) -> np.ndarray:
    """(groups, devices a group); of a permutation, its pairs."""
    if pairs := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", line):
        rows = re.findall(r"\{([\d,]+)\}", pairs[1])
        return np.asarray([[int(n) for n in row.split(",")] for row in rows])
    if found := _MESH_GROUPS.search(line):
        shape = [int(n) for n in re.findall(r"=(\d+)", found[1])]
        axes = [int(n) for n in re.findall(r"axis_(\d+)", found[3])]
        devices = _iota(found[2]) if found[2] else np.arange(math.prod(shape))
        order = [axis for axis in range(len(shape)) if axis not in axes] + axes
        size = math.prod(shape[axis] for axis in axes)
        return devices.reshape(shape).transpose(order).reshape(-1, size)
    found = re.search(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)", line)
    assert found, line
    return _iota(found[1])


def _iota(text: str) -> np.ndarray:
    """`[2,4]<=[8]`, `[2,4]<=[4,2]T(1,0)`; of a mesh `[2,4]T(1,0)`, the shape left out."""
    *shape, rest = text.split("<=")
    source, _, order = rest.partition("T")
    dims = [int(n) for n in re.findall(r"\d+", source)]
    devices = np.arange(math.prod(dims)).reshape(dims)
    if order:
        devices = devices.transpose([int(n) for n in re.findall(r"\d+", order)])
    return devices.reshape([int(n) for n in re.findall(r"\d+", shape[0])]) if shape else devices

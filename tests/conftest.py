"""Every test: 8 simulated devices, strict dtypes and ranks, fixed seeds, no network."""

import io
import os
import random
import socket
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Eight simulated devices on two busy cores reach a collective late: wait for them.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=120"
    " --xla_cpu_collective_call_terminate_timeout_seconds=600"
    # Tests compile much and compute little.
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)

import hypothesis
import jax
import numpy as np
import pytest
from PIL import Image

from vlalign.data.captions import CaptionView
from vlalign.data.images import ImageView
from vlalign.data.pipeline import Data
from vlalign.data.record import Caption, Record
from vlalign.data.sources import MemorySource
from vlalign.data.tokenizer import Bpe
from vlalign.encoders.text import TextTransformer
from vlalign.encoders.vit import ViT
from vlalign.evals.retrieval import Retrieval
from vlalign.experiment import Experiment
from vlalign.objectives.contrastive import Clip
from vlalign.parallel.mesh import MeshSpec
from vlalign.train.config import Train
from vlalign.train.optimizer import Optimizer
from vlalign.train.schedule import Cosine

jax.config.update("jax_num_cpu_devices", 8)  # of this process; a command that a test starts has one
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

_IN_CI = bool(os.environ.get("CI"))
hypothesis.settings.register_profile(
    "vlalign",
    deadline=None,  # the first example compiles
    derandomize=_IN_CI,
    max_examples=30,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("vlalign")


def _check_local(host: Any) -> None:
    """Raises for a host that is not this machine (None and "" are its own interfaces)."""
    name = host.decode() if isinstance(host, bytes) else str(host or "localhost")
    if name not in ("localhost", "::1") and not name.startswith("127."):
        raise RuntimeError(f"tests use no network, and this one asked for {name!r}")


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Raises for a connection or a name look-up that would leave this machine."""

    def guarded_connect(original: Any) -> Any:
        def connect(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                _check_local(address[0])
            return original(self, address)

        return connect

    look_up = socket.getaddrinfo

    def guarded_look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        _check_local(host)
        return look_up(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", guarded_connect(socket.socket.connect_ex))
        patch.setattr(socket, "getaddrinfo", guarded_look_up)
        yield


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    """Seeds the global generators that libraries may use; tests take `rng`."""
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def _no_mesh_left_behind() -> Iterator[None]:
    """Fails the test that sets a mesh and leaves it set: the next one would run on it unasked."""
    yield
    mesh = jax.sharding.get_abstract_mesh()
    assert mesh.empty, f"this test left the mesh {mesh} set; use `with jax.set_mesh(mesh):`"


@pytest.fixture
def rng() -> np.random.Generator:
    """A numpy generator with a fixed seed."""
    return np.random.default_rng(0)


def _picture(index: int) -> bytes:
    """A 16x16 PNG whose colour and bar are functions of `index`."""
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:] = (40 + 30 * (index % 7), 20 + 50 * (index % 4), 255 - 11 * index)
    pixels[:, index % 16] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def pairs() -> MemorySource:
    """24 pictures with names, a source in memory."""
    colours = ("red", "green", "blue", "white", "black", "grey")
    return MemorySource(
        records=tuple(
            Record(
                key=f"r{i}",
                image=_picture(i),
                captions=(Caption(f"{colours[i % 6]} number {i}", kind="name"),),
                labels={"colour": colours[i % 6]},
            )
            for i in range(24)
        )
    )


@pytest.fixture(scope="session")
def tiny(pairs: MemorySource) -> Callable[..., Experiment]:
    """An experiment that trains in a second; keyword arguments replace its parts."""

    def make(**parts: Any) -> Experiment:
        tower: dict[str, Any] = {"width": 32, "depth": 2, "heads": 4, "embed_dim": 16}
        defaults: dict[str, Any] = {
            "name": "tiny",
            "model": {
                "image": ViT(patch_size=8, pool="mean", **tower),
                "text": TextTransformer(vocab_size=320, **tower),
            },
            "objectives": {"clip": Clip()},
            "data": Data(
                source=pairs,
                views={"image": ImageView(size=16), "text": CaptionView(template=0.0)},
                tokenizer=Bpe(vocab_size=300, length=12),
                batch_size=16,
            ),
            "optimizer": Optimizer(learning_rate=1e-3, schedule=Cosine(warmup=2)),
            "evals": {"retrieval": Retrieval(source=pairs, ks=(1, 5))},
            "mesh": MeshSpec(devices=1),
            "train": Train(steps=6, log_every=1, save_every=2),
        }
        return Experiment(**{**defaults, **parts})

    return make

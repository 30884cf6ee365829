"""Chunks give the embeddings, loss and gradients of the whole batch, on one process and on two ranks."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from medcl3d.config.loading import parse
from medcl3d.core.embeddings import Embedded, Embeddings, Loss
from medcl3d.core.errors import ConfigError
from medcl3d.distributed.precision import autocast
from medcl3d.pretraining.config import PretrainConfig
from medcl3d.pretraining.parts import Learner, Pretraining, assemble
from medcl3d.pretraining.pretrain import pretrain
from medcl3d.training.grad_cache import embed_in_chunks
from tests.pretraining.test_pretrain import config_of, curve, write

OF_ONE_ROW = {"simclr": {"norm": "layer"}}  # a head without batch statistics, as chunks need
CASES = {
    "simclr": ("overlapping_crops", OF_ONE_ROW),
    "dense": ("voxel_correspondence", "dense"),
    "multi_crop": ({"multi_crop": {"local_size": [8, 8, 8], "num_local": 2}}, OF_ONE_ROW),
    "neighbours": ({"nearest_neighbours": {"queue_size": 8}}, OF_ONE_ROW),
}


def parts_of(store: Path, case: str, grad_cache: int = 0, **changes: Any) -> Pretraining:
    pairs, objective = CASES[case]
    config = config_of(
        store, Path("unused"), pairs, objective, steps=2, samples_per_step=6, grad_cache=grad_cache
    )  # type: ignore[arg-type]
    return assemble(parse(config | changes, PretrainConfig, "test"))


def gradients(learner: Learner) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("samples", [1, 4])
def test_chunks_give_the_gradients_of_the_batch(tiny_store: Path, case: str, samples: int) -> None:
    found = []
    for parts in (parts_of(tiny_store, case), parts_of(tiny_store, case, samples)):
        raw = parts.dataset()[0]
        loss: Loss = parts.learner(raw)
        loss.value.backward()
        found.append((loss.metrics, gradients(parts.learner), dict(parts.learner.relating.named_buffers())))
    (metrics, whole, queue), (of_chunks, chunked, queue_of_chunks) = found
    assert len(whole) > 5 and sum(bool(g.abs().max() > 0) for g in whole.values()) > 5
    for name, value in metrics.items():
        torch.testing.assert_close(of_chunks[name], value, rtol=1e-5, atol=1e-6, msg=name)
    for name, gradient in whole.items():
        torch.testing.assert_close(
            chunked[name], gradient, rtol=1e-4, atol=1e-6 + 1e-5 * float(gradient.abs().max()), msg=name
        )
    for name, kept in queue.items():
        torch.testing.assert_close(
            queue_of_chunks[name], kept, rtol=1e-4, atol=1e-5, equal_nan=True, msg=name
        )


@pytest.mark.parametrize("case", ["dense", "multi_crop"])
def test_embeddings_have_the_order_of_the_batch(tiny_store: Path, case: str) -> None:
    learner = parts_of(tiny_store, case).learner
    raw = parts_of(tiny_store, case).dataset()[0]
    with torch.no_grad():
        whole, chunked = learner.embed(raw), embed_in_chunks(learner.embed, raw, 4)
    for name, rows in whole.items():
        torch.testing.assert_close(
            chunked[name].keys.matrix(), rows.keys.matrix(), rtol=0, atol=0, equal_nan=True
        )
        torch.testing.assert_close(chunked[name].z, rows.z, rtol=1e-4, atol=1e-5)


def test_chunks_are_embedded_one_at_a_time_and_twice(tiny_store: Path) -> None:
    parts = parts_of(tiny_store, "simclr", 4)
    seen: list[int] = []
    parts.learner.network.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    parts.learner(parts.dataset()[0]).value.backward()
    assert seen == [8, 4, 4, 8], "two views per sample; the backward pass starts with the last chunk"


def test_bfloat16_is_the_same_in_both_passes(tiny_store: Path) -> None:
    """The maps of this network are small enough for explicit padding, which the second pass must do too."""
    found = []
    for samples in (0, 4):
        parts = parts_of(tiny_store, "simclr", samples)
        with autocast(torch.device("cpu"), torch.bfloat16):
            loss: Loss = parts.learner(parts.dataset()[0])
        loss.value.backward()
        found.append(gradients(parts.learner))
    flat = [torch.cat([g.flatten() for g in one.values()]) for one in found]
    assert F.cosine_similarity(flat[0], flat[1], dim=0) > 0.999


def test_dropout_is_the_same_in_both_passes(tiny_store: Path) -> None:
    raw = parts_of(tiny_store, "simclr").dataset()[0]
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(16**3, 6), nn.Dropout(0.5), nn.Linear(6, 4))

    def embed(part: Any) -> Embedded:
        return {"online": Embeddings(layers(part.main.crops), part.main.keys)}

    found = []
    for chunked in (False, True):
        torch.manual_seed(1)
        parts = [embed_in_chunks(embed, raw, 2)] if chunked else [embed(chunk) for chunk in raw.chunks(2)]
        after = torch.rand(1)
        layers.zero_grad()
        Embeddings.cat(part["online"] for part in parts).z.square().sum().backward()
        found.append([after, *(p.grad.clone() for p in layers.parameters() if p.grad is not None)])
    torch.testing.assert_close(found[1], found[0])


def run_rank(rank: int, world: int, store: str, folder: str, case: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    parts = parts_of(Path(store), case, grad_cache=2)
    wrapped = DistributedDataParallel(parts.learner)
    for step in range(2):  # twice, since DistributedDataParallel rebuilds its buckets after the first
        parts.learner.zero_grad()
        wrapped(parts.dataset()[step]).value.backward()
    torch.save(gradients(parts.learner), f"{folder}/{rank}.pt")
    dist.barrier()
    del wrapped  # it holds the process group, whose threads must end before the process
    gc.collect()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("case", ["dense", "multi_crop"])
def test_two_ranks_in_chunks_equal_one_process(tiny_store: Path, tmp_path: Path, case: str) -> None:
    mp.spawn(run_rank, args=(2, str(tiny_store), str(tmp_path), case), nprocs=2)
    parts = parts_of(tiny_store, case)
    parts.learner(parts.dataset()[1]).value.backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, gradient in gradients(parts.learner).items():
            torch.testing.assert_close(
                found[name], gradient, rtol=1e-4, atol=1e-6 + 1e-5 * float(gradient.abs().max()), msg=name
            )


@pytest.mark.slow
def test_an_interrupted_run_resumes_bitwise(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("whole", "cut"):
        write(
            tmp_path / f"{name}.yaml",
            config_of(tiny_store, tmp_path / name, "overlapping_crops", OF_ONE_ROW, steps=5, grad_cache=3),
        )
    pretrain(tmp_path / "whole.yaml")
    before_step = Learner.before_step

    def fail(learner: Learner, step: int, steps: int) -> None:
        before_step(learner, step, steps)
        if step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Learner, "before_step", fail)
        pretrain(tmp_path / "cut.yaml")
    pretrain(tmp_path / "cut.yaml")
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole") and len(curve(tmp_path / "whole")) == 5


def test_batch_norm_is_refused(tiny_store: Path) -> None:
    batch = {"unet3d": {"channels": [4, 8, 8], "strides": [1, 2, 2], "norm": "batch"}}
    parts_of(tiny_store, "simclr", encoder=batch)
    with pytest.raises(ConfigError, match=r"train.grad_cache = 2 with encoder.unet3d \(norm: batch\)"):
        parts_of(tiny_store, "simclr", 2, encoder=batch)


def test_a_head_with_batch_statistics_is_refused(tiny_store: Path) -> None:
    batch = {"simclr": {"norm": "batch"}}
    parts_of(tiny_store, "simclr", objective=batch)
    message = (
        r"train.grad_cache = 2 with objective.simclr .*GlobalBatchNorm.*another norm .*, for example layer"
    )
    with pytest.raises(ConfigError, match=message):
        parts_of(tiny_store, "simclr", 2, objective=batch)

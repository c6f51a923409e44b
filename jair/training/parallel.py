"""One process or many: what `torchrun` started, and sums over all of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from jair.decoder import DecoderLayer
from jair.fusion import GatedFusion
from jair.transformer_layer import TransformerLayer

Tensor = torch.Tensor


@dataclass(frozen=True)
class Workers:
    """This process among all: its rank, how many there are, its device."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether it is the one that writes."""
        return self.rank == 0

    @classmethod
    def join(cls) -> Workers:
        """Meet the others, if torchrun started more than one."""
        count, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
        device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if count > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(int(os.environ.get("RANK", 0)), count, device)

    def leave(self) -> None:
        """Part again."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def highest(self, value: int) -> int:
        """The largest over all processes."""
        if self.count == 1:
            return value
        of_all = torch.tensor(value, device=self.device)
        dist.all_reduce(of_all, dist.ReduceOp.MAX)
        return int(of_all)

    def gather(self, value: Any) -> list[Any]:
        """What every process has, in types that JSON has; the same list everywhere."""
        if self.count == 1:
            return [value]
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(self.device)
        sizes = [torch.zeros(1, dtype=torch.long, device=self.device) for _ in range(self.count)]
        dist.all_gather(sizes, torch.tensor([len(data)], device=self.device))
        longest = max(int(size) for size in sizes)
        rows = [torch.zeros(longest, dtype=torch.uint8, device=self.device) for _ in range(self.count)]
        dist.all_gather(rows, torch.cat([data, data.new_zeros(longest - len(data))]))
        return [json.loads(bytes(row[: int(n)].tolist())) for row, n in zip(rows, sizes, strict=True)]

    def like_first(self, values: Iterable[Tensor]) -> None:
        """What the first process has, in place."""
        if self.count > 1:
            for value in values:
                dist.broadcast(value, 0)

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()

    def wrap(self, model: nn.Module, strategy: str) -> nn.Module:
        """The model as it is called in training. Batch norms mix the samples of one process, and keep
        statistics of them: the first one's are validated and saved.
        """
        if self.count == 1:
            return model
        if strategy == "ddp":
            return DistributedDataParallel(model, broadcast_buffers=False)
        for module in model.modules():
            if isinstance(module, (TransformerLayer, GatedFusion, DecoderLayer)):
                fully_shard(module)
        fully_shard(model)
        return model

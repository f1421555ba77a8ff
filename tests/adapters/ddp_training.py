"""A training of data-parallel ranks, as torchrun starts it; each takes its share of every batch.

python -m torch.distributed.run --standalone --nproc-per-node 2 ddp_training.py ADDRESS RUN STEPS

Each rank prints a line of what it did, as JSON.
"""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from curriculum_client import Feed, TrainerClient
from curriculum_client.adapters.torch import CurriculumDataset

PROMPTS = 8


def main() -> None:
    target, run_id, steps = sys.argv[1:]
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(rank)
    policy = DistributedDataParallel(nn.Linear(1, 1))
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.5)
    leases, reward_sum = [], 0.0
    with TrainerClient(target, run_id=run_id) as client:
        feed = Feed(client, PROMPTS, rank=rank, world_size=world_size)
        dataset = CurriculumDataset(feed, whole_batches=True)
        batches = iter(DataLoader(dataset, batch_size=None))
        for step in range(int(steps)):
            batch = next(batches)
            numbers = [float(payload["answer"]) / 1000 for payload in batch["payload"]]
            counts = torch.tensor(batch["attempt_count"])
            x = torch.tensor(numbers)[:, None].repeat_interleave(counts, dim=0)
            guess = torch.distributions.Bernoulli(logits=policy(x)[:, 0])
            rewards = guess.sample()  # to say yes is right
            repeated = [
                lease for lease, n in zip(batch["lease"], counts, strict=True) for _ in range(n)
            ]
            dataset.report(repeated, rewards, policy_step=step)
            loss = -((rewards - rewards.mean()) * guess.log_prob(rewards)).mean()
            optimizer.zero_grad()
            loss.backward()  # the ranks meet here
            optimizer.step()
            leases += batch["lease"]
            reward_sum += rewards.sum().item()
        dist.barrier()
        feed.close(ranks_ended=True)
    weight = policy.module.weight.item()
    print(json.dumps({"leases": leases, "reward_sum": reward_sum, "weight": weight}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""The training of grpo.py, with its prompts from a DataLoader.

    curriculum-server &
    python clients/examples/grpo_dataset.py --run backwards-too

The next batch is fetched while the policy learns. It takes the flags of grpo.py, and saves nothing:
that would be as there, with the dataset's `state_dict` in place of the client's.
"""

from __future__ import annotations

from itertools import islice

from curriculum_client import Feed, TrainerClient  # curriculum
from curriculum_client.adapters.torch import CurriculumDataset  # curriculum

# isort: split
import torch
from grpo import begin, create_run, read_arguments
from torch.utils.data import DataLoader


def main() -> None:
    args = read_arguments()
    server, run = args.server, args.run
    training, pool, held_out = begin(args)
    create_run(server, run, args.strategy, pool)
    with TrainerClient(server, run) as client, Feed(client, args.batch) as feed:  # curriculum
        dataset = CurriculumDataset(feed, whole_batches=True)  # curriculum
        training.examine(held_out)
        for batch in islice(DataLoader(dataset, batch_size=None), args.steps):
            answers = [payload["answer"] for payload in batch["payload"]]
            asked = list(zip(batch["prompt"], answers, batch["attempt_count"], strict=True))
            codes, groups = training.rollout(asked)
            per_attempt = zip(batch["lease"], batch["attempt_count"], strict=True)
            leases = [lease for lease, count in per_attempt for _ in range(count)]
            dataset.report(leases, torch.cat(groups), policy_step=training.step)  # curriculum
            training.learn(codes, groups)
            if training.step % args.save_every == 0:
                training.examine(held_out)


if __name__ == "__main__":
    main()

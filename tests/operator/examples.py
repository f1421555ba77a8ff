"""Numbers to be shown."""

from __future__ import annotations

from curriculum_api.v1 import stats_pb2


def point(k: int, before: float, after: float, prompt_count: int = 2500) -> stats_pb2.BoundaryPoint:
    return stats_pb2.BoundaryPoint(
        k=k, prompt_count=prompt_count, before_pass_at_k=before, after_pass_at_k=after
    )


def busy_stats() -> stats_pb2.RunStats:
    """The numbers of a run in full swing, with names and counts that strain the layout."""
    domains = []
    sizes = {"math": 12_000, "code": 3_500, "a-very-long-domain-name-indeed": 987_654, "empty": 1}
    for number, (name, size) in enumerate(sizes.items()):
        unseen, beyond, mastered = size // (2 + number), size // 8, size // 9
        domains.append(
            stats_pb2.DomainStats(
                domain=name,
                prompt_count=size,
                bands=stats_pb2.BandCounts(
                    unseen_count=unseen,
                    beyond_count=beyond,
                    edge_count=size - unseen - beyond - mastered,
                    mastered_count=mastered,
                ),
                mean_pass_rate=0.31 + 0.1 * number,
                attempt_count=1_234_567 * (number + 1),
                pass_count=500_000 * (number + 1),
                prior_mean=0.25,
                prior_concentration=2.5,
            )
        )
    windows = [
        stats_pb2.WindowStats(
            first_policy_step=5 * n,
            last_policy_step=5 * n + 4,
            attempt_count=5120,
            pass_count=1500 + 60 * n,
            group_count=640 if n not in (3, 4) else 0,
            mixed_group_count=300 + 8 * n if n not in (3, 4) else 0,
            visited_prompt_count=600,
        )
        for n in range(37)
    ]
    total = sum(sizes.values())
    histogram = [int(2e5 / (1 + (bin_ - 4) ** 2)) + 9000 for bin_ in range(20)]
    return stats_pb2.RunStats(
        prompt_count=total,
        bands=stats_pb2.BandCounts(
            **{
                f"{band}_count": sum(getattr(d.bands, f"{band}_count") for d in domains)
                for band in ("unseen", "beyond", "edge", "mastered")
            }
        ),
        domains=domains,
        windows=windows,
        pass_rate_histogram=histogram,
        visited_pass_rate_histogram=[int(n * (0.1 + 0.03 * i)) for i, n in enumerate(histogram)],
        leased_prompt_count=256,
        policy_step=184,
        likely_mixed_prompt_count=345_678,
        timeline=1,
        attempt_count=12_345_670,
        pass_count=5_000_000,
        group_count=23_680,
        mixed_group_count=15_432,
    )

"""Every Prometheus metric of a worker, which has one run."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

PROMPTS = Counter("curriculum_probe_prompts_total", "Prompts sampled")
SAMPLED = Counter("curriculum_probe_sampled_attempts_total", "Attempts sampled")
TOKENS = Counter("curriculum_probe_tokens_total", "Tokens sampled, where the engine tells")
ATTEMPTS = Counter("curriculum_probe_attempts_total", "Attempts that the server counted")
PASSES = Counter("curriculum_probe_passes_total", "Passes that the server counted")
SETTLED = Counter(
    "curriculum_probe_settled_bands_total", "Times that a report made sure of a prompt's band"
)
SKIPPED = Counter(
    "curriculum_probe_skipped_prompts_total", "Prompts that cannot be verified or sampled"
)
VERIFIER_ERRORS = Counter(
    "curriculum_probe_verifier_errors_total", "Attempts whose verifier gave no verdict"
)
REFUSED_REPORTS = Counter("curriculum_probe_refused_reports_total", "Reports that were refused")
WEIGHT_LOADS = Counter("curriculum_probe_weight_loads_total", "Published weights", ["outcome"])
POLICY_STEP = Gauge("curriculum_probe_policy_step", "Policy step of the weights that are sampled")
ENGINE_ATTEMPTS = Gauge(
    "curriculum_probe_engine_attempts", "Attempts that are with the engine or wait for it"
)
UNVERIFIED_ATTEMPTS = Gauge(
    "curriculum_probe_unverified_attempts", "Attempts that wait for their verdicts"
)
_BUCKETS = (0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)
SAMPLE_SECONDS = Histogram(
    "curriculum_probe_sample_seconds", "Time that a prompt is with the engine", buckets=_BUCKETS
)
VERIFY_SECONDS = Histogram(
    "curriculum_probe_verify_seconds", "Time that a prompt's verdicts take", buckets=_BUCKETS
)

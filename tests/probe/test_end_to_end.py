"""A trainer, the server and a prober, while the weights change.

The trainer is real as far as the others see: it leases batches, samples them from its own model,
reports what came, saves checkpoints and publishes them. `curriculum-server`, its Valkey and
`curriculum-probe` are processes of their own.

A part of the pool, the domain `held`, is never served to the trainer, and its pass rates rise all
the same, from about .1 to about .9, as when what is learned elsewhere carries over. What the
trainer is served hardly moves, so nothing but probes can tell.
"""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf.duration_pb2 import Duration

from curriculum_api.v1 import operator_service_pb2 as op
from curriculum_api.v1 import prompt_pb2, run_pb2
from curriculum_client import TrainerClient
from tests.conftest import Stubs
from tests.probe import tiny
from tests.probe.conftest import Process
from tests.server.processes import ServerProcess

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),  # a prober takes seconds to import torch, and many on a busy machine
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

STEPS = range(40, 361, 40)
"""Of publications, each in a window of its own: weights are saved every so often."""
HELD, TRAINED, MARKED = "held", "trained", "marked"
OFFSETS = {
    HELD: dict(zip("uvwx", (-0.6, -0.2, 0.2, 0.6), strict=True)),
    TRAINED: dict(zip("ABCD", (-1.0, -0.3, 0.3, 1.0), strict=True)),
    MARKED: {"y": 0.0},
}
"""Logits, by the character with which a prompt ends."""
RISE = {
    HELD: np.linspace(-2.2, 2.2, len(STEPS)),
    TRAINED: np.linspace(0.0, 0.2, len(STEPS)),
    MARKED: np.resize([30.0, -30.0], len(STEPS)),  # always right, then never
}
"""Logits, by publication."""
PROMPT_COUNTS = {HELD: 24, TRAINED: 72, MARKED: 96}
SEEN = 16 * PROMPT_COUNTS[HELD]
"""Attempts at prompts that it is not served for which the trainer waits at each publication."""
SIGMAS = 4.4
"""Of a normal are exceeded with a chance of 1e-5."""


class Learner:
    """A model that answers "a" or "b", of which "a" is right.

    A prompt's last character decides how often: its embedding is a direction of its own, which the
    layer leaves alone and the norm brings to a length of 4, so the head's column is its logits.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._model = tiny.constant_model({"a": 1, "b": 1}).eval()
        self._tokenizer = tiny.tokenizer()
        self._rng = torch.Generator().manual_seed(1)
        letters = [letter for offsets in OFFSETS.values() for letter in offsets]
        self._place = {letter: place for place, letter in enumerate(letters)}
        embeddings, head = self._model.model.embed_tokens.weight, self._model.lm_head.weight
        with torch.no_grad():
            for letter, place in self._place.items():
                embeddings[tiny.PIECES.index(letter)] = torch.eye(head.shape[1])[place]
            head.fill_(tiny.IMPOSSIBLE / 4)
            head[tiny.PIECES.index("b")] = 0.0

    def learn(self, number: int) -> Path:
        """Go on to the weights of this publication; where they are saved."""
        row = self._model.lm_head.weight[tiny.PIECES.index("a")]
        with torch.no_grad():
            for domain, offsets in OFFSETS.items():
                for letter, offset in offsets.items():
                    row[self._place[letter]] = (offset + RISE[domain][number]) / 4
        return tiny.save(self._model, self._folder / f"step-{STEPS[number]}")

    def pass_rates(self, domain: str) -> np.ndarray:
        """The truth of every prompt of a domain."""
        return np.array([self.pass_rate(text) for text in texts(domain).values()])

    @torch.inference_mode()
    def pass_rate(self, text: str) -> float:
        """What the weights say, by a forward pass."""
        ids = torch.tensor([self._tokenizer(text)["input_ids"]])
        return float(self._model(ids).logits[0, -1].softmax(-1)[tiny.PIECES.index("a")])

    def roll_out(self, text: str, attempt_count: int) -> list[float]:
        rate = torch.full((attempt_count,), self.pass_rate(text))
        return torch.bernoulli(rate, generator=self._rng).tolist()


def texts(domain: str) -> dict[str, str]:
    """The prompts' texts by their names, in the order of the pool."""
    letters = "".join(OFFSETS[domain])
    numbers = range(PROMPT_COUNTS[domain])
    return {f"{domain}-{n}": f"{n} of kind {letters[n % len(letters)]}" for n in numbers}


class Watched:
    """One run, as an operator makes and sees it."""

    def __init__(self, stubs: Stubs, run_id: str) -> None:
        self._operator, self.run_id = stubs.operator, run_id
        self._stubs = stubs

    def create(self, *domains: str, **config: Any) -> Watched:
        selection = run_pb2.SelectionConfig(domain_shares={TRAINED: 1.0, HELD: 0.0, MARKED: 0.0})
        settings = run_pb2.RunConfig(window_steps=STEPS.step, selection=selection, **config)
        self._stubs.create_run(self.run_id, settings)
        payload = json.dumps({"answer": "a"})
        prompts = [
            prompt_pb2.Prompt(prompt_id=name, domain=domain, text=text, payload_json=payload)
            for domain in domains
            for name, text in texts(domain).items()
        ]
        self._operator.AddPrompts(op.AddPromptsRequest(run_id=self.run_id, prompts=prompts))
        return self

    def copy(self, run_id: str) -> Watched:
        """Another run that begins with what this one holds now."""
        request = op.ExportRunRequest(run_id=self.run_id)
        told = op.ImportRunRequest(run_id=run_id, request_id="copy", commit=True)
        is_last = False
        while not is_last:
            page = self._operator.ExportRun(request)
            told.parts.extend(page.parts)
            request.page_token = page.next_page_token
            is_last = not page.next_page_token
        self._operator.ImportRun(told)
        return Watched(self._stubs, run_id)

    def states(self, domain: str) -> list[prompt_pb2.PromptState]:
        request = op.ListPromptsRequest(run_id=self.run_id, domain=domain, page_size=1000)
        return list(self._operator.ListPrompts(request).prompts)

    def attempt_count(self, domain: str) -> int:
        return sum(state.attempt_count for state in self.states(domain))

    def belief(self, domain: str) -> float:
        """The mean of what is believed of its prompts."""
        return float(np.mean([state.pass_rate for state in self.states(domain)]))

    def histories(self, domain: str) -> dict[str, dict[int, tuple[int, int]]]:
        """Attempts and passes of every prompt, by the publications in whose windows they are."""
        return {name: self._history(name) for name in texts(domain)}

    def seen_at(self, domain: str, step: int) -> int:
        """Attempts that count for a publication."""
        return sum(history.get(step, (0, 0))[0] for history in self.histories(domain).values())

    def is_seen(self, domain: str, step: int, before_count: int) -> bool:
        """Whether `SEEN` attempts were counted since, and for that publication; the first is
        cheaper to ask."""
        if self.attempt_count(domain) < before_count + SEEN:
            return False
        return self.seen_at(domain, step) >= SEEN

    def _history(self, name: str) -> dict[int, tuple[int, int]]:
        request = op.GetPromptRequest(run_id=self.run_id, prompt_id=name)
        found = {}
        for window in self._operator.GetPrompt(request).history:
            # A window of one publication alone: nothing of these nine is old enough to be merged.
            assert window.last_policy_step - window.first_policy_step < STEPS.step
            step = math.ceil(window.first_policy_step / STEPS.step) * STEPS.step
            found[step] = (window.attempt_count, window.pass_count)
        return found


class Site:
    """The server, and the probers that are started beside it."""

    def __init__(self, folder: Path, opened: ExitStack) -> None:
        self.folder, self._opened = folder, opened
        flags = ("--data-dir", str(folder / "data"), "--listen", "127.0.0.1:0", "--metrics", "off")
        self._server = ServerProcess(*flags)
        opened.callback(self._server.close)
        self._server.wait_until_serving()
        self.stubs = Stubs(self._server.address)
        opened.callback(self.stubs.channel.close)

    def trainer(self, run: Watched) -> TrainerClient:
        return self._opened.enter_context(TrainerClient(self._server.address, run_id=run.run_id))

    def prober(self, run: Watched, model: Path, name: str) -> Process:
        told = {"server": self._server.address, "run": run.run_id, "engine": "transformers"}
        told |= {"model": str(model), "max-tokens": "1", "verifier-processes": "1"}
        # As many attempts as the bounds count on: else settled prompts would be left alone.
        told |= {"concurrency": "16", "prompts": "4", "attempts": "8"}
        arguments = [part for key, value in told.items() for part in (f"--{key}", value)]
        process = Process(arguments, self.folder / f"{name}.log")
        self._opened.callback(process.close)
        return process


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as opened, pytest.MonkeyPatch.context() as patched:
        patched.setenv("OMP_NUM_THREADS", "1")
        yield Site(tmp_path_factory.mktemp("site"), opened)


@dataclass
class Story:
    """What there was to see at each publication, once held prompts had been probed at it."""

    truth: list[float] = field(default_factory=list)
    followed: list[float] = field(default_factory=list)
    """Beliefs of the run with a prober."""
    left: list[float] = field(default_factory=list)
    """And of its copy, whose prober stopped after the first publication."""
    rates: dict[int, np.ndarray] = field(default_factory=dict)
    """The truth of each held prompt, by publication."""
    histories: Mapping[str, Mapping[int, tuple[int, int]]] = field(default_factory=dict)
    """Of held prompts, at the end."""
    served_domains: set[str] = field(default_factory=set)
    log: str = ""


@pytest.fixture(scope="module")
def story(site: Site, wait_until: Callable[..., Any]) -> Story:
    told, learner = Story(), Learner(site.folder)
    run = Watched(site.stubs, "followed").create(HELD, TRAINED)
    weights = learner.learn(0)
    runs, trainers = [run], [site.trainer(run)]
    trainers[0].publish_policy(STEPS[0], str(weights))
    prober = site.prober(run, weights, "prober")
    for number, step in enumerate(STEPS):
        before = run.attempt_count(HELD)
        weights = learner.learn(number)
        for trainer in trainers:
            trainer.publish_policy(step, str(weights))
            _train(trainer, learner, step, told.served_domains)
        wait_until(lambda step=step, before=before: run.is_seen(HELD, step, before), 60)
        if number == 0:
            runs.append(run.copy("left"))
            trainers.append(site.trainer(runs[1]))
        told.rates[step] = learner.pass_rates(HELD)
        told.truth.append(float(told.rates[step].mean()))
        for beliefs, of_run in zip((told.followed, told.left), runs, strict=True):
            beliefs.append(of_run.belief(HELD))
    prober.signal(signal.SIGTERM)
    assert prober.end() == 0, prober.log
    told.log = prober.log
    told.histories = run.histories(HELD)
    return told


def _train(client: TrainerClient, learner: Learner, step: int, domains: set[str]) -> None:
    batch = client.next_batch(8, policy_step=step)
    assert len(batch)
    domains |= {prompt.domain for prompt in batch}
    rewards = [learner.roll_out(prompt.text, prompt.attempt_count) for prompt in batch]
    client.report(batch, rewards, policy_step=step)


def test_the_trainer_never_sees_the_held_prompts_and_they_improve(story: Story) -> None:
    assert story.served_domains == {TRAINED}
    assert story.truth[0] < 0.12
    assert story.truth[-1] > 0.88


def test_beliefs_of_never_trained_prompts_follow_the_policy(story: Story) -> None:
    """They lie between the truth of the last publication and that of the one before.

    At least `SEEN` attempts were made at each, so their share that passes has a variance of at most
    p (1 - p) / SEEN (of prompts with different rates it is less). A belief is a mean of such shares
    and older ones, weighed by age, moved along the trend: no noisier than the newest share, and
    late by no more than one publication if old evidence is forgotten as it should be. Attempts
    counted without forgetting would leave it at half of the way.
    """
    for number, belief in enumerate(story.followed):
        truth, before = story.truth[number], story.truth[max(number - 1, 0)]
        noise = SIGMAS * math.sqrt(truth * (1 - truth) / SEEN)
        assert before - noise <= belief <= truth + noise
    assert np.all(np.diff(story.followed[1:]) > 0)


def test_without_a_prober_the_same_beliefs_stay_behind(story: Story) -> None:
    """The control: a copy that lacks nothing but the later probes."""
    followed, left = (np.subtract(b, story.truth) for b in (story.followed, story.left))
    assert left[0] == pytest.approx(followed[0], abs=0.02)  # some more reports came in between
    assert abs(left[-1]) > 0.5
    assert abs(left[-1]) > 5 * abs(followed[-1])


def test_attempts_count_for_the_step_of_the_weights_that_made_them(story: Story) -> None:
    """In each window as many pass as its publication's weights say, prompt by prompt.

    Whichever prompts are probed, passes less what was expected of them is a martingale with steps
    of at most 1 and a variance of v = sum n_i p_i (1 - p_i), for which 4.4 standard deviations and
    the bounded steps' share, L / 3 with L = ln 1e5, are allowed.
    """
    shares, windows = [], [len(history) for history in story.histories.values()]
    assert min(windows) >= len(STEPS) // 2
    for step in STEPS:
        counts_N2 = np.array([history.get(step, (0, 0)) for history in story.histories.values()])
        attempts_N, passes_N = counts_N2.T
        rate_N = story.rates[step]
        deviation = math.sqrt((attempts_N * rate_N * (1 - rate_N)).sum())
        excess = passes_N.sum() - (attempts_N * rate_N).sum()
        assert abs(excess) <= SIGMAS * deviation + math.log(1e5) / 3
        shares.append(passes_N.sum() / attempts_N.sum())
    assert shares[0] < 0.25 < 0.75 < shares[-1]


def test_weights_are_loaded_at_every_publication_by_one_process(story: Story) -> None:
    for step in STEPS:
        assert story.log.count(f"weights loaded policy_step={step} ") == 1
    assert "weights skipped" not in story.log
    assert story.log.count("stopping") == 1


def test_a_killed_prober_is_replaced_and_every_attempt_keeps_its_step(
    site: Site, wait_until: Callable[..., Any]
) -> None:
    """All attempts pass at the odd publications and none at the even ones: a wrong step shows."""
    run = Watched(site.stubs, "killed").create(MARKED, lease_ttl=Duration(seconds=3))
    learner, trainer = Learner(site.folder / "killed"), site.trainer(run)

    def probe(prober: Process, *numbers: int) -> None:
        for number in numbers:
            trainer.publish_policy(STEPS[number], str(learner.learn(number)))
            before = run.attempt_count(MARKED)
            wait_until(lambda n=number, b=before: run.is_seen(MARKED, STEPS[n], b), 60)
        assert "Traceback" not in prober.log

    first = str(learner.learn(0))
    trainer.publish_policy(STEPS[0], first)
    prober = site.prober(run, Path(first), "killed")
    probe(prober, 0, 1)
    prober.signal(signal.SIGKILL)
    assert prober.end() == -signal.SIGKILL
    prober = site.prober(run, Path(first), "successor")
    probe(prober, 2, 3)
    prober.signal(signal.SIGTERM)
    assert prober.end() == 0, prober.log

    counts = [item for history in run.histories(MARKED).values() for item in history.items()]
    for step, (attempt_count, pass_count) in counts:
        assert pass_count == (attempt_count if STEPS.index(step) % 2 == 0 else 0)
    assert {step for step, _ in counts} == set(STEPS[:4])
    assert f"weights loaded policy_step={STEPS[0]} " not in prober.log
    wait_until(lambda: not any(s.HasField("lease_expire_time") for s in run.states(MARKED)))

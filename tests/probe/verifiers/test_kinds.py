"""Each verifier's right and wrong answers, through the pool."""

from __future__ import annotations

import pytest
import reasoning_gym

CHOICES = ["London", "Paris", "Rome", "A big city"]

EXACT = [
    ({"answer": "yes"}, ["yes", " yes\n"], ["Yes", "yes.", "", "no"]),
    ({"answer": 42}, ["42"], ["42.0", "the answer is 42"]),
    ({"verifier": "exact", "answer": " a b "}, ["a b"], ["ab"]),
    ({"answer": "☃\ud800"}, ["☃\ud800"], ["☃"]),
]
NUMERIC = [
    (
        {"answer": 1234},
        ["1234", "so it is 1,234.", "12 + 1222 = 1234", "1.234e3", "x = +1234.0000"],
        ["1234 or 5", "-1234", "1235", "1.234", "no number", "", "9e999999999999999999"],
    ),
    (
        {"answer": "-0.5"},
        ["-0.5", "-.5", "\N{MINUS SIGN}0.50"],
        ["0.5", "1-0.5", "-0.5001"],
    ),
    ({"answer": "6 * 7 = 42 #### 42"}, ["#### 42"], ["41"]),
    ({"answer": 10**40}, [str(10**40)], [str(10**40 + 1)]),
    ({"answer": 1e-9}, ["0.000000001"], ["0", "2e-9"]),
    ({"answer": 3, "tolerance": 0.5}, ["3.5", "2.5"], ["3.6"]),
]
REGEX = [
    (
        {"pattern": r"(?im)^answer: (.*)$", "answer": 7},
        ["Answer: 7", "answer: 6\nthen\nANSWER:  7 ", "x\nanswer: 7\ny"],
        ["7", "answer: 7\nanswer: 8", "answer: 7.", "my answer: 7", ""],
    ),
    ({"pattern": r"\d+", "answer": "12"}, ["1, 2, 12", "12"], ["12, 3", "112"]),
    ({"pattern": r"(\w)-(?P<last>\w)", "group": "last", "answer": "b"}, ["a-b"], ["b-a"]),
    ({"pattern": r"(a)|b", "answer": "a"}, ["a"], ["b"]),
    ({"pattern": r"(a)(b)", "group": 0, "answer": "ab"}, ["ab"], ["a"]),
    ({"pattern": r"</think>\s*\S"}, ["<think></think> so"], ["<think>", ""]),
]
CHOICE = [
    (
        {"answer": "b"},
        [
            *["B", "(B)", "b", "B.", "**B**", "`[B]`", "B: Paris", "B) Paris\nbecause A is not"],
            *[
                "The answer is B",
                "the answer is (b).",
                "the answer is: b",
                "Answer:\nB",
                "Answer: [B]",
            ],
            *["Final answer: **B**", "**Answer:** B", "so the correct option is $B$."],
            *["answer: option B", "The correct choice would be (B)", "I'll go with B"],
            *["\\boxed{B}", "\\boxed{\\text{B}}", "\\boxed{\\textbf{(B)}}", "\\boxed{B) Paris}"],
            *["<ANSWER> (B) </ANSWER>", "A is wrong. <answer>B</answer> or A?"],
            *["<answer>A</answer> no <answer>B</answer>", "<answer><answer>B</answer>"],
            *["I think A... no.\nI choose option B", "The answer is A? No: the answer is B, since"],
            *["A) London\nB) Paris\nC) Rome\nB", "Let me see\n\nB\n"],
        ],
        [
            *["", "A", "Be", "BB", "\N{CYRILLIC CAPITAL LETTER VE}", "Because", "It may be B"],
            *["B or C", "The answer is B or C", "The answer is (B) and (C)", "Answer: B, C"],
            *["The answer is not B", "Not B", "The answer is Big", "the answer is by far"],
            *["A) London\nB) Paris\nC) Rome", "\\boxed{C} Answer: B", "\\boxed{B, C}", "\\boxed{}"],
            *["Answer: I think B is a nice letter", "answer: A car", "B, but the answer is A"],
        ],
    ),
    ({"answer": "A"}, ["Answer: A", "The answer is A because"], ["Answer: A car", "I", "A car"]),
    (
        {"answer": "Paris", "choices": CHOICES},
        ["B", "paris.", "It is\nParis", "<answer>**Paris**</answer>", "(B) Paris"],
        ["London", "A big city", "Not Paris", "D", "Paris or Rome"],
    ),
    ({"answer": "D", "choices": CHOICES}, ["a  big city", "D"], ["A", "big city"]),
]
MATH = [
    ({"answer": "1/2"}, ["0.5", "It is $\\frac{2}{4}$.", "\\boxed{\\frac12}"], ["0.51", "2", ""]),
    ({"answer": "x^2+2x+1"}, ["$(x+1)^2$"], ["$(x+2)^2$", "$x^2+2x$"]),
    ({"answer": 1234}, ["It is 1,234.", "\\boxed{1234} not 41"], ["\\boxed{1235} or 1234"]),
    ({"answer": "$\\{1,2\\}$"}, ["$\\{2, 1\\}$"], ["$\\{1\\}$"]),
    ({"answer": "(1,2)"}, ["$(1,2)$"], ["$(2,1)$", "$[1,2]$"]),
    ({"answer": "\\boxed{2\\sqrt{2}}"}, ["$\\sqrt{8}$"], ["$\\sqrt{2}$"]),
    ({"answer": 1e-7}, ["0.0000001", "$10^{-7}$"], ["0.000001"]),
    ({"answer": "-3"}, ["\N{MINUS SIGN}3", "$x = -3$"], ["3"]),
    (
        {"answer": "5"},
        [
            "\\boxed{4} was wrong.\n\nIt is \\boxed{5}",
            "\\boxed{5}, the final answer is $4$ less than 9",
        ],
        ["\\boxed{5} was wrong.\n\nIt is \\boxed{4}", "\\boxed{4} and \\boxed{5}"],
    ),
    ({"answer": "4,5"}, ["\\boxed{5} and \\boxed{4}", "\\boxed{4, 5}"], ["\\boxed{5}"]),
]


def _cases(**kinds):
    for name, cases in kinds.items():
        for number, (payload, right, wrong) in enumerate(cases):
            yield pytest.param({"verifier": name} | payload, right, wrong, id=f"{name}{number}")


@pytest.mark.parametrize(
    ("payload", "right", "wrong"),
    [*_cases(exact=EXACT, numeric=NUMERIC, regex=REGEX, choice=CHOICE, math=MATH)],
)
async def test_right_answers_score_one_and_wrong_ones_none(scores, payload, right, wrong) -> None:
    found = await scores(payload, right + wrong)
    expected = [1.0] * len(right) + [0.0] * len(wrong)
    pairs = zip(right + wrong, found, expected, strict=True)
    assert [pair for pair in pairs if pair[1] != pair[2]] == []


async def test_an_answer_without_a_verifier_is_compared_exactly(scores) -> None:
    assert await scores({"answer": "4"}, ["4", "4.0"]) == [1.0, 0.0]


async def test_no_text_takes_the_choice_more_than_linear_time(open_pool) -> None:
    pool = await open_pool(timeout_s=10.0)
    parts = [
        "answer is ",
        "(",
        "\\boxed{",
        " \n",
        "<answer>",
        "\\text{",
        "B or ",
        "I'll go with the ",
    ]
    ends = ["", "!", "B"]
    evil = [part * (400_000 // len(part)) + end for part in parts for end in ends]
    verdicts = await pool.verify('{"verifier": "choice", "answer": "B"}', evil)
    assert [verdict.because for verdict in verdicts] == [""] * len(evil)


@pytest.mark.filterwarnings(
    # The library that brings the boards of arc_agi leaves files open.
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)
@pytest.mark.parametrize("task", ["chain_sum", "arc_agi", "rearc", "kakurasu", "spell_backward"])
async def test_a_reasoning_gym_entry_from_json_scores_as_the_original(scores, task) -> None:
    dataset = reasoning_gym.create_dataset(task, size=2, seed=1)
    entry, other = dataset[0], dataset[1]
    completions = [
        entry["answer"],
        f"I think <answer>{entry['answer']}</answer>.",
        other["answer"],
    ]
    found = await scores({"verifier": "reasoning_gym", "task": task, "entry": entry}, completions)
    assert found == [1.0, 1.0, dataset.score_answer(other["answer"], entry)]
    assert found[2] < 1.0

import pickle

import pytest

from curriculum import InvalidInputError, SelectionConfig


def test_a_configuration_survives_its_mapping_and_pickling():
    config = SelectionConfig(strategy="thompson", domain_shares={"math": 0.5}, rest_steps=0)
    assert SelectionConfig.from_mapping(config.to_mapping()) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert SelectionConfig.from_mapping({}) == SelectionConfig()


def test_a_whole_float_is_taken_for_a_count():
    assert SelectionConfig.from_mapping({"group_size": 16.0}).group_size == 16


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("strategy", "best", "strategy='best': must be one of edge, thompson, uniform"),
        ("group_size", 1, r"group_size=1: must be in \[2, 1024\]"),
        ("group_size", 8.5, "group_size=8.5: must be a whole number"),
        ("group_size", True, "group_size=True: must be a whole number"),
        ("optimism", -1.0, "optimism=-1.0: must be >= 0"),
        ("optimism", "high", "optimism='high': must be a finite number"),
        ("sharpness", float("nan"), "sharpness=nan: must be a finite number"),
        ("rest_steps", -1, "rest_steps=-1: must be >= 0"),
        ("review_share", 1.4, r"review_share=1.4: must be in \[0, 1\]"),
        ("reach_share", None, r"reach_share=None: must be in \[0, 1\]"),
        ("reach_attempt_factor", 0, "reach_attempt_factor=0: must be >= 1"),
        ("reach_chance", 1.0, r"reach_chance=1.0: must be in \(0, 1\)"),
        ("reach_chance", 1.5, r"reach_chance=1.5: must be in \(0, 1\)"),
        ("reach_chance", 0, r"reach_chance=0: must be in \(0, 1\)"),
        ("learned_shares", 1.5, r"learned_shares=1.5: must be in \[0, 1\]"),
        ("max_share", 0.0, r"max_share=0.0: must be in \(0, 1\]"),
        ("max_share", "all", r"max_share='all': must be in \(0, 1\]"),
        ("max_share_steps", 0, "max_share_steps=0: must be >= 1"),
        ("max_share_steps", 2.5, "max_share_steps=2.5: must be a whole number"),
        ("token_weight", -0.5, r"token_weight=-0.5: must be in \[0, 1\]"),
        ("wear_visits", -1.0, "wear_visits=-1.0: must be >= 0"),
        ("candidate_ratio", 0, "candidate_ratio=0: must be >= 1"),
        ("edge_low", 0.97, r"edge_high=0.95: must be in \(edge_low, 1\)"),
        ("domain_shares", {"math": 0.7, "code": 0.4}, "domain_shares=1.1"),
        ("domain_shares", {"math": -0.1}, r"domain_shares\[math\]=-0.1: must be in \[0, 1\]"),
        ("domain_shares", [], r"domain_shares=\[\]: must be a table"),
        ("colour", "red", "key='colour': must be one of strategy, group_size, optimism"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(name, value, message):
    with pytest.raises(InvalidInputError, match=message):
        SelectionConfig.from_mapping({name: value})


def test_shares_that_exceed_the_batch_together_are_refused():
    with pytest.raises(InvalidInputError, match="review_share"):
        SelectionConfig(review_share=0.6, reach_share=0.6)


def test_what_was_discounted_is_an_unknown_key():
    with pytest.raises(InvalidInputError, match="key='discount': must be one of strategy"):
        SelectionConfig.from_mapping({"discount": 0.98})

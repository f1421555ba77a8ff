import numpy as np
import pytest

from curriculum.sampling import even_sample


@pytest.mark.parametrize("count", [0, 5, 100, 101, 130, 199, 5000])
def test_a_sample_is_spread_evenly_and_takes_nobody_twice(count):
    sample = even_sample(count, 100)
    assert len(set(sample.tolist())) == len(sample) <= 100
    assert ((sample >= 0) & (sample < count)).all()
    assert np.diff([-1, *sample, count]).max() <= max(1, 4 * count / 100)
    assert len(sample) >= min(count, 80)  # hardly above the most, some are hit twice

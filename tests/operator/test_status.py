"""Errors of the contract, read back from the wire, and the pauses before a call is repeated."""

from __future__ import annotations

import grpc
import pytest

from curriculum_api import errors
from curriculum_api.status import delays, error_from_rpc


class _FailedCall(grpc.RpcError, grpc.Call):
    def __init__(self, status: grpc.StatusCode, details: str):
        self._status, self._details = status, details

    def code(self):
        return self._status

    def details(self):
        return self._details

    initial_metadata = trailing_metadata = is_active = time_remaining = cancel = add_callback = None


@pytest.mark.parametrize("error", errors.STATUS_NAMES)
def test_every_error_of_the_contract_comes_back_as_itself(error):
    status = grpc.StatusCode[errors.STATUS_NAMES[error]]
    found = error_from_rpc(_FailedCall(status, "seed=1: no"))
    assert type(found) is error
    assert str(found) == "seed=1: no"


def test_all_errors_of_the_contract_have_a_status():
    known = errors.CurriculumError.__subclasses__()
    assert set(errors.STATUS_NAMES) == {e for e in known if e.__module__ == errors.__name__}


def test_a_foreign_status_keeps_its_name():
    found = error_from_rpc(_FailedCall(grpc.StatusCode.INTERNAL, "internal error"))
    assert type(found) is errors.CurriculumError
    assert str(found) == "INTERNAL: internal error"


def test_an_error_without_a_status_is_an_error_all_the_same():
    odd = grpc.RpcError("odd")
    found = error_from_rpc(odd)
    assert (str(found), found.__cause__) == ("odd", odd)


def test_delays_double_up_to_a_bound_and_are_cut_by_at_most_half():
    bounds = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0)
    for delay_s, bound_s in zip(delays(), bounds, strict=False):
        assert bound_s / 2 <= delay_s <= bound_s

"""Errors of the contract, read back from the wire, and the pauses before a call is repeated."""

from __future__ import annotations

import pickle

import grpc
import pytest

from curriculum_api import errors
from curriculum_api.status import MOST_PUSHBACK_S, delays, error_from_rpc, pause_s


class _FailedCall(grpc.RpcError, grpc.Call):
    def __init__(self, status: grpc.StatusCode, details: str, **metadata: str):
        self._status, self._details = status, details
        self._metadata = tuple((key.replace("_", "-"), value) for key, value in metadata.items())

    def code(self):
        return self._status

    def details(self):
        return self._details

    def trailing_metadata(self):
        return self._metadata

    initial_metadata = is_active = time_remaining = cancel = add_callback = None


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


@pytest.mark.parametrize(
    ("said", "understood_s"),
    [("250", 0.25), ("0", 0.0), ("9999999", MOST_PUSHBACK_S), ("-1", None), ("soon", None)],
)
def test_an_overloaded_service_says_when_to_come_back(said, understood_s):
    call = _FailedCall(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many", grpc_retry_pushback_ms=said)
    error = error_from_rpc(call)
    assert error.retry_after_s == understood_s
    assert pickle.loads(pickle.dumps(errors.OverloadedError("too many"))).retry_after_s is None


def test_a_pause_is_as_long_as_the_service_asks_or_longer():
    error = errors.OverloadedError("too many")
    assert pause_s(error, 0.1) == 0.1
    error.retry_after_s = 2.0
    assert 2.0 <= pause_s(error, 0.1) <= 3.0
    assert pause_s(error, 5.0) == 5.0
    assert pickle.loads(pickle.dumps(error)).retry_after_s == 2.0
    assert pause_s(errors.StoreUnavailableError("away"), 0.1) == 0.1

"""The ledger in Redis: the only package that imports redis.

Every state change of a run is one Lua script and one event on the run's stream, so that whoever
folds the stream over a snapshot holds what the store holds. All keys are built in `keys`.
"""

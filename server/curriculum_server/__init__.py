"""The service: gRPC servicers over an engine over a ledger in Redis."""

import os

# The server forks only to start the embedded Valkey, which uses no gRPC; gRPC's handlers for a fork
# would stop its threads for it. Read when grpc is first imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

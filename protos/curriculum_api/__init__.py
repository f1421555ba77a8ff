"""The contract: messages and services generated from the protos beside, errors and limits."""

"""The three gRPC services: validate, call the engine, convert."""

"""What the service does, without gRPC: runs, their mirrors, batches, reports and statistics."""

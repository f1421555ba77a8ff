"""Bounds of requests. The server refuses what exceeds them; clients cut their calls to fit."""

MAX_BATCH_PROMPTS = 4096
MAX_REPORT_ATTEMPTS = 65_536
MAX_ADD_PROMPTS = 4096
MAX_PROMPT_BYTES = 256 * 1024
MAX_PROMPT_ID_BYTES = 256
MAX_DOMAIN_BYTES = 128
MAX_REQUEST_ID_BYTES = 128
MAX_CHECKPOINT_NAME_BYTES = 128
MAX_TAGS = 16
MAX_TAG_BYTES = 64
MAX_FEATURES = 32
MAX_EMBEDDING_LENGTH = 4096
MAX_EMBEDDING_VALUE = 65_504.0
"""The largest number of 16 bits, in which embeddings are kept."""
MAX_CHANNELS = 16
MAX_CHECKPOINTS = 64
MAX_KS = 16
MAX_DOMAINS = 1024
MAX_GROUP_SIZE = 1024
MAX_SLOT_ATTEMPTS = 32_767
"""Attempts at one prompt of a batch; how many were reported is kept in 15 bits."""
MAX_URI_BYTES = 4096
MAX_PAGE_SIZE = 1000
DEFAULT_PAGE_SIZE = 100
MAX_POLICY_STEP = 2**32 - 2
"""Steps are kept as u32, with one value left for "never"."""
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
DEFAULT_PORT = 50051

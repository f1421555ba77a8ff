"""The worker that samples prompts on spare GPUs, only to refresh what is believed of them."""

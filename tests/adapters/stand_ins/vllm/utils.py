def random_uuid() -> str:
    return "request"

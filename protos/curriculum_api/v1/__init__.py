import warnings

# The generated code is old so that every runtime from 5.29 on takes it. Those of 6.30 to 6.32 warn
# that the one after the next will not; that one does (see CONTRIBUTING.md).
warnings.filterwarnings(
    "ignore", "Protobuf gencode version .* at curriculum_api/", category=UserWarning
)

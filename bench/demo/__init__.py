"""The model inside the package: its data, its training, its evaluation."""

if not __name__.startswith("headrace."):
    raise ImportError(
        f"{__name__!r} was imported from a folder of the headrace source tree; install it with "
        "'pip install -e .' and import 'headrace.bench.demo' instead"
    )

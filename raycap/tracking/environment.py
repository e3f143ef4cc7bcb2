"""Environment variables that configure MLflow's client."""

import os


def configure_mlflow() -> None:
    """Set the environment variables of MLflow's client that are not set yet.

    Call this before the first import of mlflow, which starts its telemetry when it is imported.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # The outbox retries failed deliveries. MLflow's own retries would block its thread for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

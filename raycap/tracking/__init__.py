"""Logging of sweeps to MLflow through an outbox, and links to its pages. No other package imports mlflow."""

"""MLflow: what is logged, how it is delivered, and links to its pages. The only code that imports mlflow."""

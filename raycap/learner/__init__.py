"""What learns it: the small Llama, training, evaluation. torch, and neither ray nor mlflow."""

"""What learns it: tokens, the small Llama, training, evaluation. torch, and neither ray nor mlflow."""

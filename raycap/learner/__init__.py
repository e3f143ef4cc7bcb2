"""Training and evaluation of small Llamas with torch; imports neither ray nor mlflow."""

"""Trained models and populations in folders and on the Hugging Face hub, each with its card."""

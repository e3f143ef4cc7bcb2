"""Export of trained models and populations, with cards, to folders and the Hugging Face hub."""

"""Tokenization of corpora to rows of tokens. Uses numpy and tokenizers, not torch."""

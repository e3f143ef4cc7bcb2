"""Texts of a corpus as rows of tokens. numpy and tokenizers, without torch."""

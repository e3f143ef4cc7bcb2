"""What there is to know: people, their facts, the questions about them, and how many bits that is. numpy only."""

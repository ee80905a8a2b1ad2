"""The model that comes with ualm, and its prompt where any sound that it knows will do."""

PROMPT = "a trumpet plays C5 and E5"

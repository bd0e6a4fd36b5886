"""The report of one run: what it says (`schema`), how it is measured, and its pictures."""

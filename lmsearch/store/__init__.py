"""The study store: Optuna's tables for results, and two small ones for who owes and who does what."""

"""The study store: Optuna's tables for results, and two small ones for the budget and for who runs what."""

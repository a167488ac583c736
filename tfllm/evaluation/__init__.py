"""How good a model is: metrics, intervals, figures and reports from plain labels."""
